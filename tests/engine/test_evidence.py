"""Evidence: kept whatever the driver can do, within its budget, and nothing else is ever found."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from agent.domain.events import Event, EventKind
from agent.domain.health import Outcome, ProbeResult
from agent.domain.model import Cause, Failure
from agent.domain.names import vm_name
from agent.domain.states import VmState
from agent.engine.evidence import SUMMARY, Evidence, EvidenceUnknownError
from agent.hypervisors.contract import HypervisorError
from tests.engine.support import vm

if TYPE_CHECKING:
    from pathlib import Path

NAMES = [vm_name("ci", f"01jx00000000000000000000{number:02}") for number in range(4)]


def failed(name: str) -> object:
    return vm(name, VmState.FAILED, failure=Failure(Cause.EXITED, "its process ended", 5.0))


def evidence(root: Path, *, budget: int = 1 << 20, each: int = 1 << 20) -> Evidence:
    async def events(name: str) -> tuple[Event, ...]:
        return (Event(EventKind.VM_FAILED, 5.0, vm=name, cause="exited"),)

    def probes(_: str) -> tuple[ProbeResult, ...]:
        return (ProbeResult("agent", Outcome.FAIL, "no answer", 4.0, 1.0),)

    return Evidence(root / "evidence", budget, each, events, probes)


async def keep(kept: Evidence, name: str, **sizes: int) -> None:
    async def collect(into: Path) -> None:
        into.mkdir(parents=True)
        for file, size in sizes.items():
            (into / f"{file}.log").write_bytes(b"x" * size)

    await kept.keep(failed(name), collect)  # type: ignore[arg-type]


async def test_summary_has_failure_probes_and_events(tmp_path: Path) -> None:
    kept = evidence(tmp_path)
    await keep(kept, NAMES[0], console=10)
    assert [file.name for file in await kept.files(NAMES[0])] == ["console.log", SUMMARY]
    summary = json.loads((await kept.path(NAMES[0], SUMMARY)).read_text())
    assert summary["failure"] == {"cause": "exited", "reason": "its process ended", "at_s": 5.0}
    assert summary["probes"][0]["detail"] == "no answer"
    assert summary["events"][0]["kind"] == "vm-failed"


async def test_summary_is_stored_when_the_driver_fails(tmp_path: Path) -> None:
    kept = evidence(tmp_path)

    async def collect(_: Path) -> None:
        raise HypervisorError("the tool hangs")

    with pytest.raises(HypervisorError):
        await kept.keep(failed(NAMES[0]), collect)  # type: ignore[arg-type]
    assert json.loads((await kept.path(NAMES[0], SUMMARY)).read_text())["error"] == "the tool hangs"


async def test_largest_files_are_dropped_first(tmp_path: Path) -> None:
    kept = evidence(tmp_path, each=5000)
    await keep(kept, NAMES[0], console=1000, screen=9000, tool=3000)
    assert [file.name for file in await kept.files(NAMES[0])] == ["console.log", SUMMARY, "tool.log"]
    assert json.loads((await kept.path(NAMES[0], SUMMARY)).read_text())["dropped"] == ["screen.log"]


async def test_oldest_evidence_is_deleted_first(tmp_path: Path) -> None:
    kept = evidence(tmp_path, budget=25_000)
    for age, name in enumerate(NAMES[:3]):
        await keep(kept, name, console=8000)
        os.utime(kept.root / name, (1000 + age, 1000 + age))
    await keep(kept, NAMES[3], console=8000)
    with pytest.raises(EvidenceUnknownError):
        await kept.files(NAMES[0])
    total = sum([file.size_bytes for name in NAMES[2:] for file in await kept.files(name)])
    assert 16_000 < total < 25_000


async def test_smaller_limit_applies_at_the_next_trim(tmp_path: Path) -> None:
    await keep(evidence(tmp_path), NAMES[0], console=8000)
    smaller = evidence(tmp_path, budget=1000)
    await smaller.trim()
    assert list(smaller.root.iterdir()) == []


async def test_files_outside_the_folder_are_not_found(tmp_path: Path) -> None:
    kept = evidence(tmp_path)
    await keep(kept, NAMES[0], console=10)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (kept.root / NAMES[0] / "link.log").symlink_to(secret)
    (kept.root / "notes").mkdir()
    (kept.root / "notes" / "file").write_text("not a VM's")
    for name in ("../../secret", "link.log", "/etc/passwd", "..", "", "console.log/../../../secret"):
        with pytest.raises(EvidenceUnknownError):
            await kept.path(NAMES[0], name)
    for name in ("..", "notes", "", f"{NAMES[0]}/../notes"):
        with pytest.raises(EvidenceUnknownError):
            await kept.files(name)
