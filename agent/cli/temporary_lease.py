"""Leases that this process ends itself.

`temporary_lease` holds a VM for a block, renews the lease, and releases it when the block ends. `claimed_lease` leases
a VM and releases it only when the block fails, for example because the lease could not be printed. A signal ends the
block as Ctrl-C does. After the first signal, and during the release, further signals only print a message, so a signal
cannot leave a lease behind. A process that is killed with SIGKILL leaves a temporary lease for at most `TTL_S`.
"""

from __future__ import annotations

import getpass
import os
import secrets
import socket as network
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from agent.cli.client import TIMEOUT_S, Answer, ApiClient, ProblemError
from agent.cli.documents import LeaseDocument, VmList
from agent.cli.endpoint import AgentUnreachableError
from agent.cli.interrupts import single_interrupt
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TTL_S: Final = 60.0
"""The lease is short, because its VM stays leased this long when this process is killed."""

_RENEW_S: Final = 20.0
_RELEASE_S: Final = 15.0
"""How long to retry a release while the agent is unreachable, for example because it restarts."""

_RETRY_S: Final = 0.25


def default_holder() -> str:
    """Return the holder of a lease for which the user names none: user@host."""
    return f"{_user_name()}@{network.gethostname()}"


@contextmanager
def temporary_lease(
    connect: Callable[[], ApiClient], pool: str, *, wait_s: float, purpose: str
) -> Iterator[LeaseDocument]:
    """Lease a fresh VM of a pool for the block. Raises `HearthError` when there is none within `wait_s`."""
    holder = f"{default_holder()} ({purpose} {os.getpid()})"
    with single_interrupt(b"hearth: releasing the VM\n") as ignore_interrupts, connect() as client:
        lease_id = ""
        try:
            try:
                body = {"pool": pool, "ttl_s": TTL_S, "wait_s": wait_s, "holder": holder}
                lease = _request_lease(client, body, wait_s + TIMEOUT_S).document
                lease_id = lease["id"]
                with _renewals(connect, lease_id):
                    yield lease
            finally:
                ignore_interrupts()
        finally:
            _release(client, lease_id, partial(_find_by_holder, client, holder))


@contextmanager
def claimed_lease(connect: Callable[[], ApiClient], body: dict[str, Any]) -> Iterator[Answer[LeaseDocument]]:
    """Lease a VM and yield the answer. Keep the lease when the block succeeds, release it when the block fails.

    The request gets its own idempotency key, which finds the lease when the answer was lost. Raises `HearthError` when
    there is no lease.
    """
    body = {**body, "idempotency_key": f"hearth-{secrets.token_hex(16)}"}
    with single_interrupt(b"hearth: cleaning up\n") as ignore_interrupts, connect() as client:
        lease_id, is_settled = "", False
        try:
            try:
                answer = _request_lease(client, body, body["wait_s"] + TIMEOUT_S)
                lease_id = answer.document["id"]
                yield answer
            except ProblemError:
                is_settled = True  # the agent refused, so there is no lease
                raise
            finally:
                ignore_interrupts()
            is_settled = True
        finally:
            if not is_settled:
                _release(client, lease_id, partial(_find_by_key, client, body))


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without an entry in the user database
        return str(os.getuid())


def _request_lease(client: ApiClient, body: dict[str, Any], timeout_s: float) -> Answer[LeaseDocument]:
    return client.request("POST", "/v1/leases", LeaseDocument, body, timeout_s=timeout_s)


@contextmanager
def _renewals(connect: Callable[[], ApiClient], lease_id: str) -> Iterator[None]:
    """Renew the lease from a thread while the block runs."""
    done = threading.Event()

    def renew() -> None:
        with connect() as client:
            while not done.wait(_RENEW_S):
                with suppress(HearthError):  # the command itself meets and prints the same error
                    client.request("PATCH", _path(lease_id), object, {"ttl_s": TTL_S})

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(TIMEOUT_S)


def _release(client: ApiClient, lease_id: str, find: Callable[[], list[str]]) -> None:
    """End the lease. When the answer with its id was lost, end the leases that `find` returns."""
    deadline_s = time.monotonic() + (_RELEASE_S if lease_id else 0)
    while True:
        try:
            for found in [lease_id] if lease_id else find():
                with suppress(ProblemError):  # the lease has ended already, because its VM died
                    client.request("DELETE", _path(found), object)
        except AgentUnreachableError:
            if time.monotonic() > deadline_s:
                return  # the lease expires
            time.sleep(_RETRY_S)
        else:
            return


def _find_by_holder(client: ApiClient, holder: str) -> list[str]:
    vms = client.get("/v1/vms", VmList).document["vms"]
    leases = [vm["lease"] for vm in vms if vm["lease"] and vm["lease"]["holder"] == holder]
    return [lease["id"] for lease in leases if lease["id"]]


def _find_by_key(client: ApiClient, body: dict[str, Any]) -> list[str]:
    """Return the lease that was granted under the request's key. The agent ends an abandoned request before this one.

    When none was granted and a VM is ready now, this request leases that VM. The caller releases it.
    """
    try:
        return [_request_lease(client, {**body, "wait_s": 0.0}, _RELEASE_S).document["id"]]
    except ProblemError:
        return []


def _path(lease_id: str) -> str:
    return f"/v1/leases/{quote(lease_id, safe='')}"
