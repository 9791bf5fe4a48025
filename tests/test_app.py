"""The order in which the parts of an agent start."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from agent import app
from agent.config import Config
from agent.engine.state_store import StateStore
from agent.hypervisors.simulated import SimulatedHost, SimulatedHypervisor

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_api_is_not_served_before_the_journal_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request in this time would get 404 for a lease that exists, and its holder would abandon its job."""
    loading, may_load = asyncio.Event(), asyncio.Event()
    load = StateStore.load

    async def load_slowly(store: StateStore) -> None:
        loading.set()
        await may_load.wait()
        await load(store)

    monkeypatch.setattr(StateStore, "load", load_slowly)
    config = Config(data_dir=tmp_path / "data")
    async with AsyncExitStack() as stack:
        built = await app.build(config, stack, hypervisor=SimulatedHypervisor(SimulatedHost()))
        stack.push_async_callback(built.api.close)
        starting = asyncio.create_task(built.start())
        await loading.wait()
        assert not config.socket_path.exists()
        may_load.set()
        await starting
        assert config.socket_path.exists()
        await built.engine.stop()
