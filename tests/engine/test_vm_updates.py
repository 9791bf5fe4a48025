"""Updates of VMs, also while the journal is unwritable."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from agent.domain.model import Cause
from agent.domain.states import VmState
from agent.engine import vm_updates as module
from agent.engine.vm_updates import VmUpdates
from agent.hypervisors.contract import VmExit
from tests.engine.support import Clock, open_store, put, until, vm

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_exit_is_recorded_after_the_journal_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    path = tmp_path / "journal.sqlite"
    async with open_store(path, Clock()) as store:
        await put(store, vm("v1"), vm("v2"))
        updates = VmUpdates(store, wake=lambda: None)
        following = asyncio.create_task(updates.follow_exits())
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("ALTER TABLE vms RENAME TO elsewhere")
            updates.queue_exit(VmExit("v1", -9))
            updates.queue_exit(VmExit("v2", 1, "out of memory"))
            assert updates.exited == {"v1", "v2"}
            await until(lambda: bool(store.write_error))
            assert store.state.vms["v1"].state is VmState.READY
            other.execute("ALTER TABLE elsewhere RENAME TO vms")
        await until(lambda: not updates.exited)
        following.cancel()
        assert {name: one.failure and one.failure.cause for name, one in store.state.vms.items()} == {
            "v1": Cause.EXITED,
            "v2": Cause.EXITED,
        }
        assert store.write_error == ""
