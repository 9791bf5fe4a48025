"""Reload of the configuration file while the agent runs."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from agent import app
from agent.config import load_config
from agent.config_reload import ConfigReloader
from agent.engine.conditions import ConditionBoard
from agent.host.host_monitor import HostMonitor

if TYPE_CHECKING:
    from pathlib import Path

    from agent.config import Config


class Bench:
    """A configuration file with appliers for two of its keys."""

    def __init__(self, folder: Path, text: str) -> None:
        self.path = folder / "hearth.toml"
        self.path.write_text(text)
        self.applied: list[object] = []
        self.board = ConditionBoard()
        appliers = {"host.slots": self._slots, "log.level": self._level}
        self.reloader = ConfigReloader(self.path, load_config(self.path), appliers, self.board)

    def _slots(self, config: Config) -> None:
        self.applied.append(config.host.slots)

    def _level(self, config: Config) -> None:
        self.applied.append(config.log.level)

    async def change(self, text: str) -> None:
        self.path.write_text(text)
        await self.reloader.reload()

    def problem(self, kind: str) -> str:
        return next((item.message for item in self.board.all() if item.type == kind and item.problem), "")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, "[host]\nslots = 2\n")


async def test_changed_key_is_applied_once(bench: Bench) -> None:
    await bench.change("[host]\nslots = 3\n")
    await bench.change('[host]\nslots = 3\n[log]\nlevel = "debug"\n')
    assert bench.applied == [3, "debug"]


async def test_invalid_file_keeps_the_configuration_in_force(bench: Bench) -> None:
    await bench.change("[host]\nslots = many\n")
    assert bench.applied == []
    assert "hearth.toml is not valid TOML" in bench.problem("ConfigurationValid")
    await bench.change("[host]\nslots = 4\n")
    assert bench.applied == [4]
    assert bench.problem("ConfigurationValid") == ""


async def test_keys_that_need_a_restart_are_named_until_reverted(bench: Bench) -> None:
    await bench.change('data_dir = "elsewhere"\n[host]\nslots = 2\n[images]\nstreams = 4\n')
    assert "data_dir, images.streams" in bench.problem("ConfigurationApplied")
    await bench.change("[host]\nslots = 2\n")
    assert bench.problem("ConfigurationApplied") == ""


async def test_doctor_period_is_applied_immediately(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: asyncio.Queue[None] = asyncio.Queue()

    async def count_run(_: HostMonitor) -> None:
        runs.put_nowait(None)

    monkeypatch.setattr(HostMonitor, "run_checks", count_run)
    path = tmp_path / "hearth.toml"
    text = f'data_dir = "{tmp_path}"\n[hypervisor]\nkind = "simulated"\n[host]\ndoctor_period_s = '
    path.write_text(f"{text}3600\n")
    config = load_config(path)
    async with AsyncExitStack() as stack, asyncio.timeout(10):
        built = await app.build(config, stack)
        reloader = ConfigReloader(path, config, built.appliers, built.board)
        watching = asyncio.create_task(built.watch.run())
        await runs.get()
        path.write_text(f"{text}0.01\n")
        await reloader.reload()
        for _ in range(3):
            await runs.get()
        watching.cancel()
        await asyncio.wait([watching])
    assert not any(item.problem for item in built.board.all() if item.type.startswith("Configuration"))
