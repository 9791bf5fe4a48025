"""Circuit breakers: what delays the retry of a thing that keeps failing, and what resets them.

The delay doubles from 5 s to a cap of 10 minutes with full jitter (AWS Architecture Blog, "Exponential Backoff And
Jitter"), so that hosts that failed together do not retry together. The first failures are free: one killed VM is
replaced without a delay. A success resets the breaker (`RESETS` in `agent.domain.record`), and ten minutes without a
failure start its count again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

BASE_S: Final = 5.0
CAP_S: Final = 600.0
STABLE_S: Final = 600.0


class Scope(StrEnum):
    """What kind of thing a breaker counts the failures of."""

    HOST = "host"  # this host: while its breaker is open no VM is created
    IMAGE = "image"  # an image version, by digest: its pulls, evictions and VMs
    REFERENCE = "reference"  # an image reference: its resolution
    REGISTRY = "registry"  # a registry, by its host: the queries of all references in it
    TEMPLATE = "template"  # a template: its saving, its removal, and VMs started from it
    VM = "vm"  # one VM: its teardown


@dataclass(frozen=True, slots=True, order=True)
class BreakerKey:
    """The thing that a breaker counts the failures of."""

    scope: Scope
    name: str

    def __str__(self) -> str:
        return f"{self.scope}/{self.name}"


def registry_key(reference: str) -> BreakerKey:
    """Return the key of the registry that holds an image reference. An image layout on this host is its own."""
    host = reference.partition("/")[0]
    return BreakerKey(Scope.REGISTRY, reference if host.endswith(":") else host)


HOST_KEY: Final = BreakerKey(Scope.HOST, "host")


@dataclass(frozen=True, slots=True)
class Breaker:
    """Consecutive failures of one thing, and the moment before which it is not retried."""

    key: BreakerKey
    failures: int = 0
    open_until_s: float = 0.0
    last_failure_at_s: float = 0.0
    reason: str = ""

    def is_open(self, now_s: float) -> bool:
        """Whether the thing must not be retried now."""
        # A moment beyond the longest delay was stored by a clock that was ahead.
        return now_s < self.open_until_s <= now_s + CAP_S

    def failed_recently(self, now_s: float) -> bool:
        """Whether the last failure is at most `STABLE_S` ago."""
        return self.failures > 0 and 0 <= now_s - self.last_failure_at_s <= STABLE_S


def count_failure(breaker: Breaker, *, now_s: float, jitter: float, reason: str, free: int = 0) -> Breaker:
    """Return the breaker after one more failure. `jitter` is 0 to 1; the first `free` failures cause no delay."""
    failures = breaker.failures + 1 if breaker.failed_recently(now_s) else 1
    delay_s = 0.0 if failures <= free else min(CAP_S, BASE_S * 2.0 ** min(failures - free - 1, 16)) * jitter
    return replace(breaker, failures=failures, open_until_s=now_s + delay_s, last_failure_at_s=now_s, reason=reason)
