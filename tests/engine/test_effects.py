"""Effects that end while the journal is unwritable: their results are recorded later, unchanged."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import asynccontextmanager, closing
from functools import partial
from typing import TYPE_CHECKING

import pytest

from agent.domain.actions import CreateVm, DestroyVm
from agent.domain.model import Cause, PoolSpec, VmSize
from agent.domain.names import vm_name
from agent.domain.states import VmState
from agent.engine import effect_context as module
from agent.engine.effect_context import EffectContext
from agent.engine.effects import perform
from agent.engine.evidence import Evidence
from agent.engine.executor import Executor
from agent.hypervisors.simulated import Behaviour, SimulatedHost, SimulatedHypervisor, constant
from tests.engine.support import Clock, open_store, until
from tests.hypervisors.rigs import local_image

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agent.domain.actions import Effect
    from agent.domain.model import LocalImage
    from agent.engine.state_store import StateStore

NAME = vm_name("ci", "0" * 26)
POOL = PoolSpec("ci", "reg/ci:1", size=VmSize(1, 128), stop_grace_s=0)


class LocalImages:
    """A store that has every image."""

    def __init__(self, path: Path) -> None:
        self.image = local_image(path / "disk.img")

    async def local(self, _digest: str) -> LocalImage:
        return self.image


class Stage:
    """An executor with real effects on a simulated host and a real journal that can be made unwritable."""

    def __init__(self, path: Path, store: StateStore, behaviour: Behaviour) -> None:
        self.store, self.path = store, path
        self.host = SimulatedHost(behaviour=behaviour)
        evidence = Evidence(path / "evidence", 1 << 20, 1 << 20, events=self._nothing, probes=lambda _: ())
        context = EffectContext(SimulatedHypervisor(self.host), LocalImages(path), store, evidence)  # type: ignore[arg-type]
        self.ended = asyncio.Event()
        self.executor = Executor(partial(perform, context, self._observe_storage), self.ended.set)

    async def begin(self, effect: Effect) -> None:
        """Record an effect and start it, as a reconcile pass does."""
        async with self.store.transaction() as transaction:
            transaction.record(effect)
        self.executor.start(effect)

    @asynccontextmanager
    async def unwritable(self) -> AsyncIterator[None]:
        """Make the journal unwritable until the block ends and one write has failed."""
        with closing(sqlite3.connect(self.path / "journal.sqlite", isolation_level=None)) as other:
            other.execute("ALTER TABLE vms RENAME TO elsewhere")
            yield
            await until(lambda: bool(self.store.write_error))
            other.execute("ALTER TABLE elsewhere RENAME TO vms")

    async def _nothing(self, _vm: str) -> tuple[()]:
        return ()

    async def _observe_storage(self) -> None:
        """There is no storage to observe."""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)


@asynccontextmanager
async def staged(path: Path, behaviour: Behaviour) -> AsyncIterator[Stage]:
    async with open_store(path / "journal.sqlite", Clock()) as store:
        stage = Stage(path, store, behaviour)
        try:
            yield stage
        finally:
            await stage.executor.stop()


async def test_clone_is_recorded_after_the_journal_recovers(tmp_path: Path) -> None:
    async with staged(tmp_path, Behaviour(clone_s=constant(0.05))) as stage:
        await stage.begin(CreateVm(NAME, POOL, "sha256:v1"))
        async with stage.unwritable():
            await until(lambda: bool(stage.host.vms) and stage.host.vms[NAME].is_complete)
        assert NAME in stage.executor.busy, "nothing else is planned on it until then"
        await stage.ended.wait()
        assert stage.store.state.vms[NAME].state is VmState.STARTING
        assert stage.host.vms[NAME].process is not None


async def test_failed_clone_keeps_its_cause_until_the_journal_recovers(tmp_path: Path) -> None:
    async with staged(tmp_path, Behaviour(clone_s=constant(0.05), clone_fails=1)) as stage:
        await stage.begin(CreateVm(NAME, POOL, "sha256:v1"))
        async with stage.unwritable():
            await until(lambda: not stage.host.vms)
        await stage.ended.wait()
        failure = stage.store.state.vms[NAME].failure
        assert failure is not None
        assert failure.cause is Cause.CLONE_FAILED
        assert "cannot be cloned" in failure.reason


async def test_teardown_is_not_repeated_while_the_journal_is_unwritable(tmp_path: Path) -> None:
    async with staged(tmp_path, Behaviour()) as stage:
        await stage.begin(CreateVm(NAME, POOL, "sha256:v1"))
        await stage.ended.wait()
        stage.ended.clear()
        await stage.begin(DestroyVm(NAME, "as the test wants"))
        async with stage.unwritable():
            await until(lambda: not stage.host.vms)
        await stage.ended.wait()
        assert NAME not in stage.store.state.vms
