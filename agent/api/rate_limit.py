"""The rate limit of callers: one token bucket each, filled at a fixed rate. The clock is injected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_CALLERS: Final = 1024
"""Number of buckets. The least recently used one is dropped; its caller then starts with a full one."""


@dataclass(frozen=True, slots=True)
class Rate:
    """`per_s` requests a second on average, with bursts of `burst` requests."""

    per_s: float
    burst: int


class RateLimiter:
    """The buckets of all callers."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self._buckets: dict[str, tuple[float, float]] = {}  # by caller: its tokens, and the time of that count

    def wait_s(self, caller: str, now_s: float, cost: float = 1.0) -> float:
        """Take `cost` tokens of a caller. Return 0, or the seconds until they are available.

        A request that costs more than a burst takes a whole burst.
        """
        rate = self.rate
        cost = min(cost, float(rate.burst))
        left, at_s = self._buckets.pop(caller, (float(rate.burst), now_s))
        left = min(rate.burst, left + max(0.0, now_s - at_s) * rate.per_s)
        if taken := left >= cost:
            left -= cost
        self._buckets[caller] = (left, now_s)  # moved to the end: the order is by last use
        if len(self._buckets) > MAX_CALLERS:
            del self._buckets[next(iter(self._buckets))]
        return 0.0 if taken else (cost - left) / rate.per_s
