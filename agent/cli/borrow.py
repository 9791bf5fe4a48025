"""A VM for the length of a block: leased, kept alive by renewals, and given back however the block ends.

Or leased for longer, and given back only when the block that tells of it does not end well. Signals end the block as
Ctrl-C does, once: from the first one on, and while the VM is given back, further ones are only answered. So there is no
moment at which a signal could leave a lease behind. A process that is killed outright leaves a borrowed one for
`LEASE_S` at most.
"""

from __future__ import annotations

import getpass
import os
import secrets
import signal
import socket as network
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from agent.cli.client import TIMEOUT_S, ApiClient, ProblemError
from agent.cli.interrupts import SIGNALS
from agent.cli.place import AgentUnreachableError
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from agent.cli.client import Answer

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
            _give_back(client, lease.get("id"), partial(_held_by, client, holder))


@contextmanager
def claimed(connect: Callable[[], ApiClient], wanted: dict[str, Any]) -> Iterator[Answer]:
    """Lease a VM and yield the answer. The lease lives on when the block ends well; else it is given back.

    The request gets a key of its own, by which a lease is found whose answer was lost. Raises `HearthError` when there
    is no lease.
    """
    wanted = {**wanted, "idempotency_key": f"hearth-{secrets.token_hex(16)}"}
    with _one_interrupt(b"hearth: one moment\n") as no_more, connect() as client:
        lease, settled = "", False
        try:
            try:
                answer = client.ask("POST", "/v1/leases", wanted, timeout_s=wanted["wait_s"] + TIMEOUT_S)
                lease = answer.document["id"]
                yield answer
            except ProblemError:
                settled = True  # refused: there is none
                raise
            finally:
                no_more()
            settled = True
        finally:
            if not settled:
                _give_back(client, lease, partial(_under_key, client, wanted))


@contextmanager
def _one_interrupt(
    answer: bytes = b"hearth: giving the VM back, one moment\n",
) -> Iterator[Callable[[], None]]:
    """Raise KeyboardInterrupt for the first signal in the block only, and for none after the yielded call.

    Further ones are answered on stderr.
    """
    quiet = False

    def no_more() -> None:
        nonlocal quiet
        quiet = True

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        if quiet:
            os.write(2, answer)
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


def _give_back(client: ApiClient, lease: str | None, find: Callable[[], list[str]]) -> None:
    """End the lease; where its id never reached us, what `find` tells to be ours, if there is one."""
    deadline_s = time.monotonic() + (_RETURN_S if lease else 0)
    while True:
        try:
            found = [lease] if lease else find()
            for name in found:
                with suppress(ProblemError):  # it is gone already: its VM died
                    client.ask("DELETE", _path(name))
        except AgentUnreachableError:
            if time.monotonic() > deadline_s:
                return  # it ends by itself when its time is over
            time.sleep(_RETRY_S)
        else:
            return


def _held_by(client: ApiClient, holder: str) -> list[str]:
    vms = client.get("/v1/vms").document["vms"]
    return [vm["lease"]["id"] for vm in vms if vm["lease"] and vm["lease"]["holder"] == holder]


def _under_key(client: ApiClient, wanted: dict[str, Any]) -> list[str]:
    """Return the lease that the request got under its key: the agent ends a request we left before it hears this one.

    Where it got none and a VM has turned ready just now, this takes that one: it is given back all the same.
    """
    try:
        return [client.ask("POST", "/v1/leases", {**wanted, "wait_s": 0.0}, timeout_s=_RETURN_S).document["id"]]
    except ProblemError:
        return []


def _path(lease: str) -> str:
    return f"/v1/leases/{quote(lease, safe='')}"
