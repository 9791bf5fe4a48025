"""Lease clients that behave as a controller: they retry requests without an answer and remember their leases."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from scripts.lib.chaos.expected_state import Claim, ClaimState

if TYPE_CHECKING:
    from scripts.lib.chaos.expected_state import ExpectedState
    from scripts.lib.host import Host

HOLD_TTL_S: Final = 3600.0
RETRY_S: Final = 0.2
PATIENCE_S: Final = 90.0
"""How long a client retries while the agent does not answer. The agent is restarted within this time."""
_NO_ANSWER: Final = (aiohttp.ClientError, OSError, TimeoutError)


class Clients:
    """Lease clients of one host."""

    def __init__(self, host: Host, expected: ExpectedState) -> None:
        self._host = host
        self._expected = expected

    async def lease(
        self, pool: str, holder: str, *, wait_s: float, ttl_s: float | None = None, keyed: bool
    ) -> Claim | None:
        """Request a lease. A request with an idempotency key is repeated until it is answered; one without is not.

        With `ttl_s` the lease is left to expire; without, the client holds it. Returns None when no lease was granted.
        """
        body: dict[str, Any] = {"pool": pool, "holder": holder, "wait_s": wait_s, "ttl_s": ttl_s or HOLD_TTL_S}
        if keyed:
            body["idempotency_key"] = holder
        self._expected.unanswered.add(holder)
        self._expected.round.pools_requested.add(pool)
        try:
            status, answer = await self._request("POST", "/v1/leases", body, retry=keyed)
        except _NO_ANSWER:
            self._expected.round.pools_refused.add(pool)
            self._expected.counts["leases_unanswered"] += 1
            return None
        self._expected.unanswered.discard(holder)
        if status >= 400:
            self._expected.round.pools_refused.add(pool)
            self._expected.counts["leases_refused"] += 1
            return None
        if keyed and any(claim.lease == answer["id"] for claim in self._expected.claims):
            raise AssertionError(f"{holder} received the lease of another holder")
        self._expected.counts["leases"] += 1
        expires_at_s = datetime.fromisoformat(answer["expires_at"]).timestamp() if ttl_s else None
        claim = Claim(answer["id"], answer["vm"], pool, holder, self._expected.round.number, expires_at_s)
        self._expected.claims.append(claim)
        return claim

    async def release(self, claim: Claim) -> None:
        """Release a lease. Retries until the agent answers."""
        claim.state = ClaimState.RELEASED
        await self._request("DELETE", f"/v1/leases/{claim.lease}", None, retry=True)

    async def release_unanswered(self, lease_id: str) -> None:
        """Release a lease whose grant was not received."""
        await self._request("DELETE", f"/v1/leases/{lease_id}", None, retry=True)

    async def _request(self, method: str, path: str, body: object, *, retry: bool) -> tuple[int, Any]:
        """Return status and document. With `retry`, server errors count as no answer: a full disk causes some.

        Exception: 503 for a new lease is an answer, because it means that no VM is free.
        """
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                status, document = await self._send(method, path, body)
                if status < 500 or not retry or (method == "POST" and status == 503):
                    return status, document
            except _NO_ANSWER:
                if not retry or time.monotonic() > deadline_s:
                    raise
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{method} {path} was not answered for {PATIENCE_S:g} s")
            await asyncio.sleep(RETRY_S)

    async def _send(self, method: str, path: str, body: object) -> tuple[int, Any]:
        connector = aiohttp.UnixConnector(str(self._host.socket))
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with (
            aiohttp.ClientSession("http://hearth", connector=connector, timeout=timeout) as http,
            http.request(method, path, json=body) as response,
        ):
            return response.status, await response.json(content_type=None)
