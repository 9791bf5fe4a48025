"""When and how often to try again: capped exponential back-off with full jitter, or longer where the other side asks.

(AWS Architecture Blog, "Exponential Backoff And Jitter"; RFC 9110 §10.2.3.)
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import structlog

from agent.images.errors import TransferError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = structlog.get_logger()

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Retry:
    """How patient to be with failures that may pass. `attempts` counts tries in a row that brought nothing."""

    attempts: int = 6
    base_s: float = 0.5
    cap_s: float = 20.0
    ask_cap_s: float = 120.0
    """The longest Retry-After that is obeyed; above it, the registry is down for our purposes."""
    jitter: Callable[[], float] = field(default=random.random)
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep)

    def delay_s(self, failures: int, asked_s: float | None) -> float:
        """Return how long to wait after so many failures in a row, at least as long as the other side asked."""
        backoff_s = min(self.cap_s, self.base_s * 2.0 ** min(failures - 1, 16)) * self.jitter()
        return backoff_s if asked_s is None else min(asked_s, self.ask_cap_s) + backoff_s

    async def pause(self, failures: int, error: TransferError) -> None:
        """Wait before the next try, or raise `error` when there have been enough."""
        if failures >= self.attempts:
            raise error
        delay_s = self.delay_s(failures, error.retry_after_s)
        log.info("transfer-retried", error=error.message, failures=failures, delay_s=round(delay_s, 3))
        await self.sleep(delay_s)

    async def run(self, operation: Callable[[], Awaitable[_Result]]) -> _Result:
        """Return what `operation` returns, trying again on `TransferError`."""
        failures = 0
        while True:
            try:
                return await operation()
            except TransferError as error:
                failures += 1
                await self.pause(failures, error)
