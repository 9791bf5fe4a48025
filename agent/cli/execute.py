"""`hearth exec`: lease, run, release, with the guest's own exit code."""

from __future__ import annotations

import signal
import sys
import threading
from base64 import b64decode
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import quote

import typer

from agent.cli import options
from agent.cli.client import TIMEOUT_S, ApiClient, ProblemError
from agent.cli.exits import Exit
from agent.cli.leases import whoami
from agent.cli.output import complain
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

app = typer.Typer(add_completion=False)

LEASE_S: Final = 60.0
"""The lease is this short and renewed while the command runs: when we are killed, the VM is free again that soon."""

_RENEW_S: Final = 20.0


@app.command()
def execute(
    pool: Annotated[str, typer.Argument(help="The pool to take a VM from.")],
    command: Annotated[list[str], typer.Argument(help="The program and its arguments; no shell in between.")],
    wait: Annotated[
        float, typer.Option(parser=options.parse_duration, metavar="TIME", help="How long to wait for a VM.")
    ] = 300.0,
    timeout: Annotated[
        float, typer.Option(parser=options.parse_duration, metavar="TIME", help="How long the command may take.")
    ] = 3600.0,
    config: options.Config = None,
    socket: options.Socket = None,
) -> int:
    """Run a command on a fresh VM of a pool and end with its exit code. The VM is used for nothing else, and torn down.

    Output is shown when the command has ended. Ctrl-C at any moment gives the VM back.

    \b
    hearth exec small -- uname -a
    hearth exec small --timeout 20m -- sh -c 'cd /work && make test'
    """
    try:
        with (
            options.client(socket, config) as client,
            _signals_as_ctrl_c(),
            _leased(client, pool, wait) as lease,
            _renewed(lease, socket, config),
        ):
            path = f"/v1/leases/{quote(lease, safe='')}/exec"
            wanted = {"argv": command, "timeout_s": timeout}
            ended: dict[str, Any] = client.ask("POST", path, wanted, timeout_s=timeout + TIMEOUT_S).document
    except HearthError as error:
        complain(error)
        return Exit.EXEC_FAILED
    sys.stdout.buffer.write(b64decode(ended["stdout"]))
    sys.stdout.flush()
    sys.stderr.buffer.write(b64decode(ended["stderr"]))
    if ended["truncated"]:
        sys.stderr.write("hearth: there was more output than the agent keeps\n")
    return int(ended["exit_code"]) & 0xFF


@contextmanager
def _leased(client: ApiClient, pool: str, wait_s: float) -> Iterator[str]:
    """Hold a lease for the block, and give it back however the block ends."""
    wanted = {"pool": pool, "ttl_s": LEASE_S, "wait_s": wait_s, "holder": whoami()}
    lease: str = client.ask("POST", "/v1/leases", wanted, timeout_s=wait_s + TIMEOUT_S).document["id"]
    try:
        yield lease
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not cut the release short
        with suppress(ProblemError):  # it is gone already: its VM died
            client.ask("DELETE", f"/v1/leases/{quote(lease, safe='')}")


@contextmanager
def _renewed(lease: str, socket: Path | None, config: Path | None) -> Iterator[None]:
    """Renew the lease from a thread for as long as the block runs."""
    done = threading.Event()

    def renew() -> None:
        with options.client(socket, config) as client:
            while not done.wait(_RENEW_S):
                with suppress(HearthError):  # the command itself meets the same error, and tells it
                    client.ask("PATCH", f"/v1/leases/{quote(lease, safe='')}", {"ttl_s": LEASE_S})

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(TIMEOUT_S)


@contextmanager
def _signals_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the block as Ctrl-C does, so that the VM is given back."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
