"""A write that times out: the journal may have it. The next decision waits for its outcome."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from agent.domain.actions import ExpireLease
from agent.domain.rules import expire_leases
from agent.domain.states import VmState
from agent.engine import database as database_module
from agent.engine.database import Database
from agent.engine.schema import JournalError, JournalTimeoutError
from tests.engine.support import put, vm
from tests.engine.test_leases import open_bench

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.test_leases import Bench


class SlowDisk:
    """Delays the commits of a database until `resume`."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.resume = threading.Event()
        apply = database._apply

        def apply_late(change: object) -> None:
            self.resume.wait(30)
            apply(change)  # type: ignore[arg-type]

        monkeypatch.setattr(database, "_apply", apply_late)
        monkeypatch.setattr(database_module, "WRITE_TIMEOUT_S", 0.05)


async def grant_with_a_slow_disk(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    """Request a lease whose commit times out."""
    disk = SlowDisk(bench.store._database, monkeypatch)
    with pytest.raises(JournalTimeoutError, match="did not answer"):
        await bench.acquire()
    assert bench.store.write_error
    return disk


async def test_late_commit_does_not_wedge_the_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_bench(tmp_path) as bench:
        await put(bench.store, vm("v1"), vm("v2"))
        disk = await grant_with_a_slow_disk(bench, monkeypatch)
        with pytest.raises(JournalError, match="did not answer"):
            await bench.acquire()  # the outcome is still unknown: no decision is made
        assert not await bench.store.try_writing(), "the agent must not report that it is ready"
        disk.resume.set()
        async with asyncio.timeout(10):
            while not await bench.store.try_writing():  # noqa: ASYNC110 - the thread sets no event
                await asyncio.sleep(0.01)
        monkeypatch.setattr(database_module, "WRITE_TIMEOUT_S", 30.0)
        assert [one.state for one in bench.store.state.vms.values()] == [VmState.LEASED, VmState.READY]
        assert (await bench.acquire()).vm == "v2"


async def test_lease_of_a_late_commit_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client got an error and may not know the lease."""
    async with open_bench(tmp_path) as bench:
        await put(bench.store, vm("v1"))
        disk = await grant_with_a_slow_disk(bench, monkeypatch)
        disk.resume.set()
        monkeypatch.setattr(database_module, "WRITE_TIMEOUT_S", 30.0)
        assert await bench.store.try_writing()
        (lease,) = bench.store.state.leases.values()
        assert list(expire_leases(bench.world())) == [ExpireLease("v1", lease.id)]


async def test_reads_do_not_wait_for_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_bench(tmp_path) as bench:
        await put(bench.store, vm("v1"))
        disk = SlowDisk(bench.store._database, monkeypatch)
        monkeypatch.setattr(database_module, "WRITE_TIMEOUT_S", 30.0)
        request = asyncio.create_task(bench.acquire())
        async with asyncio.timeout(10):
            await bench.store._database.events()
        assert not request.done()
        disk.resume.set()
        assert (await request).vm == "v1"


async def test_reads_of_callers_that_left_are_dropped(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "journal.sqlite")
    release, calls = threading.Event(), 0

    def slow() -> None:
        nonlocal calls
        calls += 1
        release.wait(30)

    reads = [asyncio.create_task(database._read(slow)) for _ in range(20)]
    while not calls:  # noqa: ASYNC110 - the thread sets no event
        await asyncio.sleep(0)
    for read in reads:
        read.cancel()
    await asyncio.gather(*reads, return_exceptions=True)
    release.set()
    await database.last_event()
    assert calls == 1
    await database.close()
