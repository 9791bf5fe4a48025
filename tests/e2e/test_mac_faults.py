"""The whole agent with a Mac tool that fails: it tells why, goes on, leaves nothing. All: scripts/bench/mac-faults."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from scripts.lib.bench.tart_faults import FAULTS, try_fault

pytestmark = pytest.mark.timeout(120)

WORST = (
    "clone hangs on TERM too",
    "run dies with a slot",
    "the guest dies, run exits with 0",
    "slots leak",
    "every question hangs",
)


@pytest.mark.parametrize("name", WORST)
async def test_the_agent_gets_past_a_fault_or_tells_its_cause(name: str) -> None:
    (fault,) = [one for one in FAULTS if one.name == name]
    result = await try_fault(fault, Path(tempfile.mkdtemp(prefix="hearth-test-")))
    assert fault.cause in result.reported_cause
    assert result.recovered_during_s is not None or result.recovered_after_s is not None
    assert result.hung == 0, "a command outlived its time"
    assert result.left == []
