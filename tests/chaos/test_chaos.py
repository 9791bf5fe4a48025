"""A few rounds of `scripts/chaos` on real guests and on simulated Macs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psutil
import pytest

from scripts.lib.chaos.cli import summary
from scripts.lib.chaos.run import Run

if TYPE_CHECKING:
    from pathlib import Path

MINUTES = pytest.mark.skipif(os.environ.get("HEARTH_SLOW") != "1", reason="takes minutes; set HEARTH_SLOW=1")
SEED = 379  # crashes, kills, an outage and all kinds of leases, but no step that takes long to settle


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("hypervisor", "rounds"),
    [
        pytest.param("qemu", 4, marks=pytest.mark.qemu),
        pytest.param("tart", 3, marks=pytest.mark.slow),
        pytest.param("anka", 3, marks=[pytest.mark.slow, MINUTES]),
    ],
)
async def test_chaos_rounds_find_no_violation(tmp_path: Path, hypervisor: str, rounds: int) -> None:
    directory = tmp_path / "chaos"
    outcome = await Run(SEED, directory, slots=2, hypervisor=hypervisor).run_rounds(rounds)

    assert outcome.findings == [], (directory / "chaos.log").read_text()
    figures = summary([outcome])
    assert figures["ok"]
    assert figures["rounds"] == rounds
    assert figures["agent_kills"] + figures["vms_harmed"] > 0
    assert not os.path.ismount(directory / "host" / "data")
    assert not [process for process in psutil.process_iter(["cmdline"]) if _runs_in(process, directory)]


def _runs_in(process: psutil.Process, directory: Path) -> bool:
    return any(str(directory) in part for part in process.info["cmdline"] or ())
