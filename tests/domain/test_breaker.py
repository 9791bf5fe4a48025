"""What stops retrying: delays that double with full jitter up to a cap, and that are forgotten when all is calm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain.breaker import BASE_S, CAP_S, STABLE_S, Breaker, held_back, record_failure
from agent.domain.model import HostLimits, World

NOW_S = 1_000_000.0


def failed(times: int, *, jitter: float = 1.0, free: int = 0) -> Breaker:
    breaker = Breaker("image")
    for _ in range(times):
        breaker = record_failure(breaker, now_s=NOW_S, jitter=jitter, reason="it died", free=free)
    return breaker


@pytest.mark.parametrize(("times", "delay_s"), [(1, 5), (2, 10), (3, 20), (7, 320), (8, 600), (50, 600)])
def test_the_delay_doubles_up_to_the_cap(times: int, delay_s: float) -> None:
    assert failed(times).open_until_s - NOW_S == delay_s


@given(times=st.integers(1, 60), jitter=st.floats(0, 1))
def test_jitter_is_full(times: int, jitter: float) -> None:
    """Anything from nothing to the whole delay, so that a fleet that failed together does not retry together."""
    whole_s = min(CAP_S, BASE_S * 2 ** (times - 1))
    assert failed(times, jitter=jitter).open_until_s - NOW_S == pytest.approx(whole_s * jitter, abs=1e-6)


def test_free_failures_are_answered_at_once() -> None:
    assert not failed(2, free=2).is_open(NOW_S)
    assert failed(3, free=2).open_until_s - NOW_S == BASE_S


@pytest.mark.parametrize(("calm_s", "failures"), [(STABLE_S, 6), (STABLE_S + 1, 1)])
def test_it_is_reset_when_stable(calm_s: float, failures: int) -> None:
    later = record_failure(failed(5), now_s=NOW_S + calm_s, jitter=1.0, reason="again")
    assert later.failures == failures
    assert later.reason == "again"


def test_what_it_holds_back_is_left_alone_until_its_time() -> None:
    breaker = failed(1)

    def held_back_at(now_s: float) -> bool:
        return held_back(World(now_s, 0.5, HostLimits(1, 1, 1), breakers={"image": breaker}), "image")

    assert held_back_at(NOW_S + BASE_S - 0.1)
    assert not held_back_at(NOW_S + BASE_S)


def test_what_is_worked_on_is_left_alone() -> None:
    world = World(NOW_S, 0.5, HostLimits(1, 1, 1), busy=frozenset({"image"}))
    assert held_back(world, "image")
    assert not held_back(world, "other")
