"""How often one caller may ask: a bucket of tokens for each, filled at a fixed rate. The clock comes from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_CALLERS: Final = 1024
"""Buckets kept. The one used longest ago makes room: its caller starts anew with a full one."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many requests a second in the long run, and `burst` of them at once."""

    per_s: float
    burst: int


class RateLimiter:
    """The buckets of all callers."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self._buckets: dict[str, tuple[float, float]] = {}  # by caller: what is in it, and as of when

    def wait_s(self, caller: str, now_s: float) -> float:
        """Take one token of a caller. Returns 0, or after how many seconds there will be one."""
        rate = self.rate
        left, at_s = self._buckets.pop(caller, (float(rate.burst), now_s))
        left = min(rate.burst, left + max(0.0, now_s - at_s) * rate.per_s)
        if taken := left >= 1:
            left -= 1
        self._buckets[caller] = (left, now_s)  # at the end again: the order is that of use
        if len(self._buckets) > MAX_CALLERS:
            del self._buckets[next(iter(self._buckets))]
        return 0.0 if taken else (1 - left) / rate.per_s
