"""Limits on transfers: retries, parallel requests, and bytes received per second."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from agent.images.errors import TransferError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

log = structlog.get_logger()

_Result = TypeVar("_Result")

_BURST_S: Final = 0.1
_STEP_S: Final = 0.1
"""The delay after which a waiting transfer applies a changed bandwidth limit."""
_SHORTEST_WAIT_S: Final = 0.001
"""The limiter does not sleep for less than this: a pass of the event loop costs more."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Capped exponential back-off with full jitter, or longer if the registry sends `Retry-After`.

    `attempts` counts attempts in a row that made no progress. A transfer of many requests also persists for
    `patience_s` after its last progress: of thousands of requests, some fail `attempts` times by chance, and one slow
    part must not discard the others. Sources: AWS Architecture Blog, "Exponential Backoff And Jitter"; RFC 9110
    §10.2.3.
    """

    attempts: int = 6
    patience_s: float = 120.0
    base_s: float = 0.5
    cap_s: float = 20.0
    retry_after_cap_s: float = 120.0
    """Longest `Retry-After` that is obeyed. A longer one is shortened to this."""
    jitter: Callable[[], float] = field(default=random.random)
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep)

    def delay_s(self, failures: int, retry_after_s: float | None) -> float:
        """Return the delay after this many failures in a row; at least `retry_after_s`, up to its cap."""
        backoff_s = min(self.cap_s, self.base_s * 2.0 ** min(failures - 1, 16)) * self.jitter()
        return backoff_s if retry_after_s is None else min(retry_after_s, self.retry_after_cap_s) + backoff_s

    async def wait_before_retry(self, failures: int, error: TransferError, *, idle_s: float = math.inf) -> None:
        """Wait before the next attempt. Raises `error` after `attempts` failures without progress for `patience_s`.

        `idle_s` is the time since the last progress of the whole transfer.
        """
        if failures >= self.attempts and idle_s >= self.patience_s:
            raise error
        delay_s = self.delay_s(failures, error.retry_after_s)
        log.info("transfer-retried", error=error.message, failures=failures, delay_s=round(delay_s, 3))
        await self.sleep(delay_s)

    async def run(
        self, operation: Callable[[], Awaitable[_Result]], *, idle_s: Callable[[], float] = lambda: math.inf
    ) -> _Result:
        """Return the result of `operation`, retrying it on `TransferError`."""
        failures = 0
        while True:
            try:
                return await operation()
            except TransferError as error:
                failures += 1
                await self.wait_before_retry(failures, error, idle_s=idle_s())


class StreamLimiter:
    """Limits the parallel requests of one pull.

    The limit is halved when a registry reports overload, and grows by one for each round of successful requests.
    """

    def __init__(self, max_streams: int) -> None:
        self._max_streams = max_streams
        self._limit = float(max_streams)
        self._active = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def limit(self) -> int:
        """How many requests may run in parallel now."""
        return int(self._limit)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it."""
        while self._active >= self.limit:
            await self._wait_for_slot()
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1
            self._admit_waiting()

    def record_overload(self) -> None:
        """Halve the limit, because the registry reported overload."""
        self._limit = max(1.0, self._limit / 2)

    def record_success(self) -> None:
        """Raise the limit, because a request completed."""
        self._limit = min(float(self._max_streams), self._limit + 1 / self._limit)
        self._admit_waiting()

    async def _wait_for_slot(self) -> None:
        admitted = asyncio.get_running_loop().create_future()
        self._waiting.append(admitted)
        try:
            await admitted
        except asyncio.CancelledError:
            with suppress(ValueError):
                self._waiting.remove(admitted)
            # This waiter may have been admitted already: pass its slot to the next one.
            self._admit_waiting()
            raise

    def _admit_waiting(self) -> None:
        for _ in range(min(self.limit - self._active, len(self._waiting))):
            admitted = self._waiting.popleft()
            if not admitted.done():
                admitted.set_result(None)


class BandwidthLimiter:
    """Limits the bytes per second that all pulls receive together.

    `bytes_per_s` may be changed at any time and applies to running transfers; None removes the limit.
    """

    def __init__(
        self,
        bytes_per_s: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.bytes_per_s = bytes_per_s
        self._clock = clock
        self._sleep = sleep
        self._credit = 0.0
        self._counted_at_s = clock()

    async def take(self, count: int) -> float:
        """Count received bytes, wait until the limit allows more, and return the seconds waited."""
        self._credit -= count
        started_s = self._clock()
        while (wait_s := self._wait_s()) > _SHORTEST_WAIT_S:
            await self._sleep(min(wait_s, _STEP_S))
        return self._clock() - started_s

    def _wait_s(self) -> float:
        now_s = self._clock()
        elapsed_s, self._counted_at_s = now_s - self._counted_at_s, now_s
        rate = self.bytes_per_s
        if rate is None:
            self._credit = 0.0
            return 0.0
        self._credit = min(self._credit + elapsed_s * rate, rate * _BURST_S)
        return -self._credit / rate
