"""Breakers: what stops retrying a thing that keeps failing. One per image digest, registry reference, or host.

The delay doubles from 5 s to a cap of 10 minutes with full jitter (AWS Architecture Blog, "Exponential Backoff And
Jitter"), so that a fleet that failed together does not retry together. The first failures are free: one killed VM is
replaced at once. A breaker closes again after ten stable minutes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from agent.domain.model import World

BASE_S: Final = 5.0
CAP_S: Final = 600.0
STABLE_S: Final = 600.0
HOST_BREAKER: Final = "host"
"""Key of the breaker for what is the host's own fault: while it is open no VM is created."""


@dataclass(frozen=True, slots=True)
class Breaker:
    """Failures in a row of one thing, and until when it is left alone."""

    key: str
    failures: int = 0
    open_until_s: float = 0.0
    last_failure_at_s: float = 0.0
    reason: str = ""

    def is_open(self, now_s: float) -> bool:
        """Whether the thing must be left alone now."""
        return now_s < self.open_until_s


def held_back(world: World, key: str) -> bool:
    """Whether something is busy with `key`, or its breaker is open."""
    breaker = world.breakers.get(key)
    return key in world.busy or (breaker is not None and breaker.is_open(world.now_s))


def record_failure(breaker: Breaker, *, now_s: float, jitter: float, reason: str, free: int = 0) -> Breaker:
    """Return the breaker after one more failure. `jitter` is 0 to 1; the first `free` failures cause no delay."""
    calm = now_s - breaker.last_failure_at_s > STABLE_S
    failures = 1 if calm else breaker.failures + 1
    delay_s = 0.0 if failures <= free else min(CAP_S, BASE_S * 2.0 ** min(failures - free - 1, 16)) * jitter
    return replace(breaker, failures=failures, open_until_s=now_s + delay_s, last_failure_at_s=now_s, reason=reason)
