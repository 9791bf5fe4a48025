"""The whole agent with faults of `anka`: it answers, ends hung commands, reports a cause, and recovers.

Two faults run always, all with `HEARTH_SLOW=1`. `scripts/bench/mac-faults` prints the table.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts.lib.bench.anka_faults import FAULTS, try_fault

if TYPE_CHECKING:
    from scripts.lib.bench.fault_result import Fault

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ALWAYS = ("start fails, but the VM runs", "stop hangs on TERM too")
STUCK_MS = 1000.0
"""Limit for `/livez` on a busy machine. scripts/bench/mac-faults measures the real latency."""


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_agent_recovers_from_anka_fault(fault: Fault) -> None:
    if fault.name not in ALWAYS and os.environ.get("HEARTH_SLOW") != "1":
        pytest.skip("takes minutes; set HEARTH_SLOW=1")
    result = await try_fault(fault, Path(tempfile.mkdtemp(prefix="hearth-anka-")))
    assert fault.cause in result.reported_cause
    assert result.recovered_during_s is not None or result.recovered_after_s is not None
    assert result.hung == 0, "a command ran past its timeout"
    assert result.left == []
    assert max(result.livez_ms) < STUCK_MS
