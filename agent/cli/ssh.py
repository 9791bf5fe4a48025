"""`hearth ssh`: a shell on a fresh VM of a pool, or on an existing VM."""

from __future__ import annotations

import os
import shlex
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import quote

import typer

from agent.cli import options
from agent.cli.documents import HostDocument, VmDetail, VmList, VmStatus
from agent.cli.exit_codes import ExitCode
from agent.cli.interrupts import deferred_interrupts
from agent.cli.output import print_error
from agent.cli.temporary_lease import temporary_lease
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.cli.client import ApiClient
    from agent.cli.documents import AddressDocument

app = typer.Typer(add_completion=False)

OPTIONS: Final = {
    # Every VM is a clone with its own host keys, and its port belonged to other VMs before. A known_hosts entry would
    # cause false warnings. The agent forwards the port, so the answer comes from the VM.
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
    """The target is unknown or cannot be reached by ssh."""

    code = "ssh-target"


class WarmVmError(HearthError):
    """The target is an idle VM, which must stay unmodified for its next job."""

    code = "vm-warm"


@app.command()
def ssh(
    target: Annotated[
        str,
        typer.Argument(
            help="A pool, for a fresh VM of it; or the end of the id of a VM or lease.",
            show_default=False,
            autocompletion=options.complete_targets,
        ),
    ],
    command: Annotated[list[str] | None, typer.Argument(help="The command to run instead of a shell.")] = None,
    user: Annotated[str, typer.Option("--user", "-l", envvar="HEARTH_SSH_USER", help="The user to log in as.")] = "",
    identity: Annotated[str, typer.Option("--identity", "-i", metavar="FILE", help="The private key.")] = "",
    jump: Annotated[
        str, typer.Option(metavar="HOST", help="The jump host to VMs of a remote agent. Default: the agent's host.")
    ] = "",
    wait: options.Wait = 300.0,
    config: options.Config = None,
    socket: options.Socket = None,
) -> int:
    """Open a shell on a VM, or run a command there, and exit with its exit code.

    For a pool, lease a fresh VM and release it when the shell ends. A VM that is leased, starting or failed keeps its
    state, as does the VM of a lease. Host keys are not checked, because every clone has its own. Other settings come
    from the configuration of ssh.

    \b
    hearth ssh xcode --user admin
    hearth ssh xcode -l admin -- sw_vers
    hearth ssh xcode -l admin -- 'cd /work && make test'
    hearth ssh 01jx4cd0
    """
    connect = partial(options.build_client, socket, config)
    login = (["-l", user] if user else []) + (["-i", identity] if identity else [])

    def run(address: AddressDocument | None) -> int:
        return _run(
            [*login, *_address_arguments(address, jump or options.remote_host()), *_quote_command(command or [])]
        )

    try:
        with connect() as client:
            vm = _find_vm(client, target)
        if vm is not None:
            return run(vm["address"])
        with temporary_lease(connect, target, wait_s=wait, purpose="ssh") as lease:
            return run(lease["address"])
    except HearthError as error:
        print_error(error)
        return ExitCode.EXEC_FAILED


def _lease_id(vm: VmStatus) -> str:
    return (vm["lease"] and vm["lease"]["id"]) or ""


def _find_vm(client: ApiClient, target: str) -> VmDetail | None:
    """Return the VM that the target names, or None when it names a pool."""
    if any(pool["name"] == target for pool in client.get("/v1/host", HostDocument).document["pools"]):
        return None
    vms = client.get("/v1/vms", VmList).document["vms"]
    found = [vm for vm in vms if vm["name"].endswith(target) or _lease_id(vm).endswith(target)]
    if len(found) != 1:
        message = f"{len(found)} VMs match {target!r}" if found else f"no pool, VM or lease matches {target!r}"
        raise TargetError(message, remedy="see `hearth status` for the pools and VMs of this host")
    (vm,) = found
    if vm["state"] in ("ready", "standby"):
        raise WarmVmError(
            f"{vm['name']} is idle and must stay unmodified for its next job",
            remedy=f"lease a VM for yourself: hearth ssh {vm['pool']}",
        )
    return client.get(f"/v1/vms/{quote(vm['name'], safe='')}", VmDetail).document


def _address_arguments(address: AddressDocument | None, jump: str) -> list[str]:
    """Return ssh's arguments for the guest's port 22, with a jump host for a port that a remote host forwards."""
    if not address:
        raise TargetError("the VM has no address", remedy="see `hearth vms` for its state, and try again")
    if _PORT not in address["ports"]:
        remedy = f"add {_PORT} to `ports` of its pool in the assignment"
        raise TargetError(f"port {_PORT} of the VM is not forwarded", remedy=remedy)
    is_remote = jump and jump not in _LOOPBACK
    return [*(["-J", jump] if is_remote else []), "-p", str(address["ports"][_PORT]), address["host"]]


def _quote_command(command: Sequence[str]) -> list[str]:
    """Return the command as one word, because ssh passes a line to the guest's shell, which splits it again.

    A single word is such a line already.
    """
    return [shlex.join(command)] if len(command) > 1 else list(command)


def _run(arguments: list[str]) -> int:
    """Run ssh on our terminal and return its exit code; 128 + N when signal N ended it."""
    settings = [part for name, value in OPTIONS.items() for part in ("-o", f"{name}={value}")]
    with deferred_interrupts() as deliver_interrupts:
        try:
            # Not a CommandRunner, which captures output: ssh needs the terminal.
            process = subprocess.Popen(["ssh", *settings, *arguments])
        except FileNotFoundError as error:
            raise TargetError("there is no `ssh` on this machine", remedy="install the OpenSSH client") from error
        try:
            deliver_interrupts()
            code = process.wait()
        except KeyboardInterrupt:
            _terminate(process)
            raise
    return code if code >= 0 else 128 - code


def _terminate(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_TERM_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
