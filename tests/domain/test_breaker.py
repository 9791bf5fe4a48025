"""Breakers: delays that double with full jitter up to a cap, and a count that starts again after a stable time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain.breaker import BASE_S, CAP_S, STABLE_S, Breaker, BreakerKey, Scope, count_failure
from agent.domain.model import HostLimits
from agent.domain.world import World

NOW_S = 1_000_000.0
KEY = BreakerKey(Scope.IMAGE, "image")


def failed(times: int, *, jitter: float = 1.0, free: int = 0) -> Breaker:
    breaker = Breaker(KEY)
    for _ in range(times):
        breaker = count_failure(breaker, now_s=NOW_S, jitter=jitter, reason="it died", free=free)
    return breaker


@pytest.mark.parametrize(("times", "delay_s"), [(1, 5), (2, 10), (3, 20), (7, 320), (8, 600), (50, 600)])
def test_delay_doubles_up_to_cap(times: int, delay_s: float) -> None:
    assert failed(times).open_until_s - NOW_S == delay_s


@given(times=st.integers(1, 60), jitter=st.floats(0, 1))
def test_jitter_spans_the_whole_delay(times: int, jitter: float) -> None:
    """Hosts that failed together do not retry together."""
    whole_s = min(CAP_S, BASE_S * 2 ** (times - 1))
    assert failed(times, jitter=jitter).open_until_s - NOW_S == pytest.approx(whole_s * jitter, abs=1e-6)


def test_free_failures_cause_no_delay() -> None:
    assert not failed(2, free=2).is_open(NOW_S)
    assert failed(3, free=2).open_until_s - NOW_S == BASE_S


@pytest.mark.parametrize(("stable_s", "failures"), [(STABLE_S, 6), (STABLE_S + 1, 1)])
def test_count_starts_again_after_stable_time(stable_s: float, failures: int) -> None:
    later = count_failure(failed(5), now_s=NOW_S + stable_s, jitter=1.0, reason="again")
    assert later.failures == failures
    assert later.reason == "again"


def test_open_breaker_blocks_until_its_time() -> None:
    def is_blocked(now_s: float) -> bool:
        return World(now_s, 0.5, HostLimits(1, 1, 1), breakers={KEY: failed(1)}).is_blocked(KEY)

    assert is_blocked(NOW_S + BASE_S - 0.1)
    assert not is_blocked(NOW_S + BASE_S)


def test_busy_resource_is_blocked() -> None:
    world = World(NOW_S, 0.5, HostLimits(1, 1, 1), busy=frozenset({"image"}))
    assert world.is_blocked(KEY)
    assert not world.is_blocked(BreakerKey(Scope.IMAGE, "other"))
