"""`hearth ssh`: a shell on a fresh VM of a pool, or on one that is there."""

from __future__ import annotations

import os
import shlex
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import quote

import typer

from agent.cli import complete, interrupts, options
from agent.cli.borrow import borrowed
from agent.cli.exits import Exit
from agent.cli.output import complain
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.cli.client import ApiClient

app = typer.Typer(add_completion=False)

OPTIONS: Final = {
    # Every VM is a clone with host keys of its own, reached by a port that others had before: there is nothing to
    # remember of it, and what answers there is what the agent forwards.
    "StrictHostKeyChecking": "no",
    "UserKnownHostsFile": os.devnull,
    "LogLevel": "ERROR",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "15",
}
_PORT: Final = "22"
_TERM_S: Final = 5.0
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class TargetError(HearthError):
    """What is named cannot be reached by ssh."""

    code = "ssh-target"


class WarmVmError(HearthError):
    """A warm VM must stay what its image is."""

    code = "vm-warm"


@app.command()
def ssh(
    target: Annotated[
        str,
        typer.Argument(
            help="A pool, for a fresh VM of it; or a VM or lease, by the end of its id.",
            show_default=False,
            autocompletion=complete.targets,
        ),
    ],
    command: Annotated[list[str] | None, typer.Argument(help="What to run there instead of a shell.")] = None,
    user: Annotated[str, typer.Option("--user", "-l", envvar="HEARTH_SSH_USER", help="Who to log in as.")] = "",
    identity: Annotated[str, typer.Option("--identity", "-i", metavar="FILE", help="The private key to use.")] = "",
    jump: Annotated[
        str, typer.Option(metavar="HOST", help="The way to a remote host's VMs; the agent's host unless given.")
    ] = "",
    wait: options.Wait = 300.0,
    config: options.Config = None,
    socket: options.Socket = None,
) -> int:
    """Open a shell on a VM and end with its exit code.

    With a pool, a VM of it is leased, and given back when the shell ends. A VM that is leased, starts or failed is left
    as it is; so is a lease's. Host keys are not checked: every clone has its own. Other settings come from ssh's own
    configuration.

    \b
    hearth ssh xcode --user admin
    hearth ssh xcode -l admin -- sw_vers
    hearth ssh xcode -l admin -- 'cd /work && make test'
    hearth ssh 01jx4cd0
    """
    connect = partial(options.client, socket, config)
    login = (["-l", user] if user else []) + (["-i", identity] if identity else [])

    def run(address: dict[str, Any] | None) -> int:
        return _run([*login, *_way(address, jump or options.remote_host()), *_quoted(command or [])])

    try:
        with connect() as client:
            found = _find(client, target)
        if found is not None:
            return run(found)
        with borrowed(connect, target, wait_s=wait, purpose="ssh") as lease:
            return run(lease["address"])
    except HearthError as error:
        complain(error)
        return Exit.EXEC_FAILED


def _find(client: ApiClient, target: str) -> dict[str, Any] | None:
    """Return the address of the VM or lease that is named, or None when it is the name of a pool."""
    if any(pool["name"] == target for pool in client.get("/v1/host").document["pools"]):
        return None
    vms = client.get("/v1/vms").document["vms"]
    found = [vm for vm in vms if vm["name"].endswith(target) or (vm["lease"] and vm["lease"]["id"].endswith(target))]
    if len(found) != 1:
        many = f"{len(found)} VMs are" if found else "no pool, VM or lease is"
        raise TargetError(f"{many} named {target!r}", remedy="see `hearth status` for what is here")
    (vm,) = found
    if vm["state"] in ("ready", "standby"):
        raise WarmVmError(
            f"{vm['name']} waits for a job, and must stay as its image is",
            remedy=f"take a VM for yourself: hearth ssh {vm['pool']}",
        )
    address: dict[str, Any] | None = client.get(f"/v1/vms/{quote(vm['name'], safe='')}").document["address"]
    return address or {}


def _way(address: dict[str, Any] | None, jump: str) -> list[str]:
    """Return the arguments that lead to the guest's port 22. Forwarded ports of another host are reached by a jump."""
    if not address:
        raise TargetError("the VM has no address", remedy="see `hearth vms` for its state, and try again")
    if _PORT not in address["ports"]:
        remedy = f"add {_PORT} to `ports` of its pool in the assignment"
        raise TargetError(f"port {_PORT} of the VM cannot be reached", remedy=remedy)
    away = jump and jump not in _LOOPBACK
    return [*(["-J", jump] if away else []), "-p", str(address["ports"][_PORT]), address["host"]]


def _quoted(command: Sequence[str]) -> list[str]:
    """Return the command as one word for the guest's shell, which would otherwise split its arguments anew.

    A single word is such a line already, as it is for ssh.
    """
    return [shlex.join(command)] if len(command) > 1 else list(command)


def _run(arguments: list[str]) -> int:
    """Run ssh on our terminal and return its exit code; 128 and the signal's number when one ended it."""
    settings = [part for name, value in OPTIONS.items() for part in ("-o", f"{name}={value}")]
    with interrupts.held() as let_go:
        try:
            # It owns the terminal while it runs, which no captured command could.
            process = subprocess.Popen(["ssh", *settings, *arguments])
        except FileNotFoundError as error:
            raise TargetError("there is no `ssh` on this machine", remedy="install OpenSSH's client") from error
        try:
            let_go()
            code = process.wait()
        except KeyboardInterrupt:
            _end(process)
            raise
    return code if code >= 0 else 128 - code


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_TERM_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
