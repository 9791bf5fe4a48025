"""`hearth journal` on the files of a stopped agent."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.engine.database import TABLES
from agent.host.data_dir_lock import lock_data_directory
from tests.engine.test_journal_recovery import LEASED, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Ended


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "hearth.toml"
    path.write_text('data_dir = "data"\n[hypervisor]\nkind = "simulated"\n')
    return path


@pytest.fixture
async def journal(config: Path) -> Path:
    path = config.parent / "data" / "journal.sqlite"
    path.parent.mkdir()
    await write(path)
    return path


def test_journal_is_inspected_exported_and_checked(config: Path, journal: Path, hearth: Callable[..., Ended]) -> None:
    summary = json.loads(hearth("journal", "inspect", "--config", config, "--json").out)
    assert (summary["records"]["Vm"], summary["records"]["Lease"], summary["events"]) == (4, 2, 2000)
    assert "4  Vm" in hearth("journal", "inspect", "--config", config).out
    lines = [json.loads(line) for line in hearth("journal", "export", "--config", config).out.splitlines()]
    assert {line["kind"] for line in lines} <= {kind.__name__ for kind in TABLES} | {"Event"}
    assert next(line for line in lines if line["key"] == LEASED)["record"]["lease_id"] == "l1"
    ended = hearth("journal", "check", "--config", config)
    assert (ended.code, ended.out) == (0, f"{journal} is valid\n")


def test_valid_journal_is_rebuilt_only_with_force(config: Path, journal: Path, hearth: Callable[..., Ended]) -> None:
    assert hearth("journal", "rebuild", "--config", config).code == 6
    forced = json.loads(hearth("journal", "rebuild", "--force", "--json", "--config", config).out)
    assert forced["adopted"] == []  # a new simulated host has no VMs
    assert forced["lost_leases"] == ["l1", "l2"]
    assert Path(forced["old"]).exists()
    assert hearth("journal", "check", "--config", config).code == 0
    assert journal.exists()


def test_damaged_journal_is_reported_and_rebuilt(config: Path, journal: Path, hearth: Callable[..., Ended]) -> None:
    journal.write_bytes(b"this is not a database" * 1000)
    checked = hearth("journal", "check", "--config", config)
    assert checked.code == 1
    assert "the file is damaged: file is not a database" in checked.out
    assert hearth("journal", "rebuild", "--config", config).code == 0
    with closing(sqlite3.connect(journal)) as fresh:
        assert fresh.execute("SELECT count(*) FROM events").fetchone() == (1,)
    assert hearth("journal", "check", "--config", config).out == f"{journal} is valid\n"


def test_journal_of_running_agent_is_not_touched(config: Path, journal: Path, hearth: Callable[..., Ended]) -> None:
    before = journal.read_bytes()
    with lock_data_directory(journal.parent):
        for command in ("inspect", "export", "check", "rebuild"):
            ended = hearth("journal", command, "--config", config)
            assert ended.code == 6
            assert "already uses" in ended.err
    assert journal.read_bytes() == before


def test_missing_journal_is_reported(config: Path, hearth: Callable[..., Ended]) -> None:
    ended = hearth("journal", "check", "--config", config)
    assert ended.code == 4
    assert "there is no journal at" in ended.err
    assert not (config.parent / "data").exists()
