"""The whole agent with a failing Mac tool: cause, recovery, no leftovers. All faults: scripts/bench/mac-faults."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from scripts.lib.bench.tart_faults import FAULTS, try_fault

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

WORST = (
    "clone hangs on TERM too",
    "run dies with a slot",
    "the guest dies, run exits with 0",
    "slots leak",
    "every query hangs",
)


@pytest.mark.parametrize("name", WORST)
async def test_agent_recovers_from_tart_fault(name: str) -> None:
    (fault,) = [one for one in FAULTS if one.name == name]
    result = await try_fault(fault, Path(tempfile.mkdtemp(prefix="hearth-test-")))
    assert fault.cause in result.reported_cause
    assert result.recovered_during_s is not None or result.recovered_after_s is not None
    assert result.hung == 0, "a command ran past its timeout"
    assert result.left == []
