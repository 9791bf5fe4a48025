"""A VM for the length of a block: leased, kept alive by renewals, and given back however the block ends.

Signals end the block as Ctrl-C does, once: from the first one on, and while the VM is given back, further ones are only
answered. So there is no moment at which a signal could leave a lease behind. A process that is killed outright leaves
one for `LEASE_S` at most.
"""

from __future__ import annotations

import getpass
import os
import signal
import socket as network
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from agent.cli.client import TIMEOUT_S, ApiClient, ProblemError
from agent.cli.interrupts import SIGNALS
from agent.cli.place import AgentUnreachableError
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

LEASE_S: Final = 60.0
"""The lease is this short and renewed while the block runs: when we are killed, the VM is free again that soon."""

_RENEW_S: Final = 20.0
_RETURN_S: Final = 15.0
"""How long an agent that is away, since it restarts, is waited for to take the VM back."""

_RETRY_S: Final = 0.25


def whoami() -> str:
    """Return who holds a lease that names nobody."""
    return f"{getpass.getuser()}@{network.gethostname()}"


@contextmanager
def borrowed(connect: Callable[[], ApiClient], pool: str, *, wait_s: float, purpose: str) -> Iterator[dict[str, Any]]:
    """Hold a fresh VM of a pool for the block and yield its lease. Raises `HearthError` when there is none."""
    holder = f"{whoami()} ({purpose} {os.getpid()})"
    with _one_interrupt() as no_more, connect() as client:
        lease: dict[str, Any] = {}
        try:
            try:
                wanted = {"pool": pool, "ttl_s": LEASE_S, "wait_s": wait_s, "holder": holder}
                lease = client.ask("POST", "/v1/leases", wanted, timeout_s=wait_s + TIMEOUT_S).document
                with _renewed(connect, lease["id"]):
                    yield lease
            finally:
                no_more()
        finally:
            _give_back(client, lease.get("id"), holder)


@contextmanager
def _one_interrupt() -> Iterator[Callable[[], None]]:
    """Raise KeyboardInterrupt for the first signal in the block only, and for none after the yielded call."""
    quiet = False

    def no_more() -> None:
        nonlocal quiet
        quiet = True

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        if quiet:
            os.write(2, b"hearth: giving the VM back, one moment\n")
            return
        no_more()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield no_more
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _renewed(connect: Callable[[], ApiClient], lease: str) -> Iterator[None]:
    """Renew the lease from a thread for as long as the block runs."""
    done = threading.Event()

    def renew() -> None:
        with connect() as client:
            while not done.wait(_RENEW_S):
                with suppress(HearthError):  # the command itself meets the same error, and tells it
                    client.ask("PATCH", _path(lease), {"ttl_s": LEASE_S})

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(TIMEOUT_S)


def _give_back(client: ApiClient, lease: str | None, holder: str) -> None:
    """End the lease; where its id never reached us, the one that carries our name, if there is one."""
    deadline_s = time.monotonic() + (_RETURN_S if lease else 0)
    while True:
        try:
            found = [lease] if lease else _held_by(client, holder)
            for name in found:
                with suppress(ProblemError):  # it is gone already: its VM died
                    client.ask("DELETE", _path(name))
        except AgentUnreachableError:
            if time.monotonic() > deadline_s:
                return  # it ends by itself within `LEASE_S`
            time.sleep(_RETRY_S)
        else:
            return


def _held_by(client: ApiClient, holder: str) -> list[str]:
    vms = client.get("/v1/vms").document["vms"]
    return [vm["lease"]["id"] for vm in vms if vm["lease"] and vm["lease"]["holder"] == holder]


def _path(lease: str) -> str:
    return f"/v1/leases/{quote(lease, safe='')}"
