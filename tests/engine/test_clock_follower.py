"""The agent's time, and the records that follow a step of the host's clock, on a real journal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from agent.domain.model import Lease
from agent.domain.stored_state import Changes, Put
from agent.engine.clock_follower import ClockFollower
from agent.engine.database import Database
from agent.engine.state_store import StateStore
from agent.host.clock import HostClock

if TYPE_CHECKING:
    from pathlib import Path

LEASE = Lease("l1", "ci", "v1", "job", 3600, 1000, 4600)


@dataclass
class Clocks:
    """The two clocks of a host: the test sets the first one, the second one only counts."""

    wall_s: float = 1000.0
    elapsed_s: float = 10.0

    def advance(self, seconds: float) -> None:
        self.wall_s += seconds
        self.elapsed_s += seconds

    def host_clock(self) -> HostClock:
        return HostClock(wall_s=lambda: self.wall_s, elapsed_s=lambda: self.elapsed_s)


async def opened(path: Path, clocks: Clocks, moved: list[float]) -> tuple[Database, ClockFollower]:
    database = await Database.open(path / "journal.sqlite")
    clock = clocks.host_clock()
    store = StateStore(database, clock=clock, jitter=lambda: 0.5)
    await store.load()
    follower = ClockFollower(store, clock, "boot", moved.append)
    await follower.start()
    return database, follower


def left_s(follower: ClockFollower) -> float:
    return follower.store.state.leases["l1"].expires_at_s - follower.clock()


@pytest.mark.parametrize("step_s", [10_800.0, -400 * 86400.0, 1.8e9])
async def test_step_changes_the_time_but_no_duration(tmp_path: Path, step_s: float) -> None:
    clocks, moved = Clocks(), list[float]()
    database, follower = await opened(tmp_path, clocks, moved)
    async with follower.store.transaction() as transaction:
        transaction.apply(Changes((Put(LEASE),)))
    clocks.advance(600)
    clocks.wall_s += step_s
    assert left_s(follower) == 3000, "a step must not end a lease before it is followed"
    await follower.follow()
    assert left_s(follower) == pytest.approx(3000)
    assert follower.clock() == pytest.approx(clocks.wall_s)
    assert moved == [pytest.approx(step_s)]
    await database.close()


async def test_small_steps_are_followed_together(tmp_path: Path) -> None:
    clocks, moved = Clocks(), list[float]()
    database, follower = await opened(tmp_path, clocks, moved)
    for _ in range(20):
        clocks.advance(1)
        clocks.wall_s += 0.5
        await follower.follow()
    assert moved == pytest.approx([2.0] * 5)
    assert follower.clock() == pytest.approx(clocks.wall_s)
    await database.close()


@pytest.mark.parametrize("step_s", [0.0, 86400.0, -86400.0])
async def test_restarted_agent_continues_the_time_of_the_last_one(tmp_path: Path, step_s: float) -> None:
    """The clock is set while an agent runs that does not notice it any more, or while no agent runs."""
    clocks = Clocks()
    database, follower = await opened(tmp_path, clocks, [])
    async with follower.store.transaction() as transaction:
        transaction.apply(Changes((Put(LEASE),)))
    await database.close()
    clocks.advance(600)
    clocks.wall_s += step_s
    for _ in range(2):  # the second restart must not move the records again
        database, follower = await opened(tmp_path, clocks, [])
        assert left_s(follower) == pytest.approx(3000)
        assert follower.clock() == pytest.approx(clocks.wall_s)
        await database.close()


async def test_failed_write_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks, moved = Clocks(), list[float]()
    database, follower = await opened(tmp_path, clocks, moved)
    clocks.wall_s += 100
    await database.close()
    before_s = follower.clock()
    with pytest.raises(Exception, match=r"(?i)closed|shutdown"):
        await follower.follow()
    assert (follower.clock(), moved) == (before_s, [])
