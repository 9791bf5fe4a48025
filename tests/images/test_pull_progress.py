"""Bytes, rate and remaining time of a pull, with a clock that the test controls."""

from __future__ import annotations

from agent.images.pull_progress import PullProgressTracker


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_rate_and_eta_follow_the_last_seconds() -> None:
    clock = Clock()
    tracker = PullProgressTracker("host/a:v1", "sha256:00", source="host/a", clock=clock)
    tracker.set_total(1000)
    assert tracker.snapshot().eta_s is None
    for _ in range(4):
        clock.now_s += 1.0
        tracker.add_fetched(100)
        tracker.add_done(100)
    now = tracker.snapshot()
    assert (now.total_bytes, now.done_bytes, now.fetched_bytes, now.source) == (1000, 400, 400, "host/a")
    assert now.rate_bytes_per_s == 100.0
    assert now.eta_s == 6.0


def test_old_rate_is_discarded() -> None:
    clock = Clock()
    tracker = PullProgressTracker("host/a:v1", "sha256:00", clock=clock)
    tracker.set_total(10**6)
    for rate in (1000, 10):
        for _ in range(20):
            clock.now_s += 1.0
            tracker.add_fetched(rate)
    assert 9 <= tracker.snapshot().rate_bytes_per_s <= 12


def test_local_bytes_count_as_done_and_not_as_fetched() -> None:
    tracker = PullProgressTracker("host/a:v1", "sha256:00", clock=Clock())
    tracker.set_total(100)
    tracker.add_done(100)
    now = tracker.snapshot()
    assert (now.done_bytes, now.fetched_bytes, now.rate_bytes_per_s) == (100, 0, 0.0)
