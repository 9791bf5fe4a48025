"""Progress: bytes, rate and time left, from a clock that the test holds."""

from __future__ import annotations

from agent.images.meter import Meter


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_rate_and_time_left_follow_the_last_seconds() -> None:
    clock = Clock()
    meter = Meter("host/a:v1", "sha256:00", source="host/a", clock=clock)
    meter.expect(1000)
    assert meter.snapshot().eta_s is None
    for _ in range(4):
        clock.now_s += 1.0
        meter.received(100)
        meter.done(100)
    now = meter.snapshot()
    assert (now.total_bytes, now.done_bytes, now.fetched_bytes, now.source) == (1000, 400, 400, "host/a")
    assert now.rate_bytes_per_s == 100.0
    assert now.eta_s == 6.0


def test_an_old_rate_is_forgotten() -> None:
    clock = Clock()
    meter = Meter("host/a:v1", "sha256:00", clock=clock)
    meter.expect(10**6)
    for rate in (1000, 10):
        for _ in range(20):
            clock.now_s += 1.0
            meter.received(rate)
    assert 9 <= meter.snapshot().rate_bytes_per_s <= 12


def test_what_was_here_counts_as_done_and_not_as_fetched() -> None:
    meter = Meter("host/a:v1", "sha256:00", clock=Clock())
    meter.expect(100)
    meter.done(100)
    now = meter.snapshot()
    assert (now.done_bytes, now.fetched_bytes, now.rate_bytes_per_s) == (100, 0, 0.0)
