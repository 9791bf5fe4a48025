"""The whole agent while `anka` misbehaves: it answers, ends what hangs, tells why, and recovers.

Two faults stand for the rest; `HEARTH_SLOW=1` goes through all of them. The table: scripts/bench/mac-faults.
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

pytestmark = pytest.mark.timeout(300)

ALWAYS = ("start fails, but the VM runs", "stop hangs on TERM too")
STUCK_MS = 1000.0
"""What `/livez` may take at the worst on a machine that does ten other things. The table tells what it took."""


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_whatever_anka_does_the_agent_answers_tells_and_recovers(fault: Fault) -> None:
    if fault.name not in ALWAYS and os.environ.get("HEARTH_SLOW") != "1":
        pytest.skip("takes its time: HEARTH_SLOW=1")
    result = await try_fault(fault, Path(tempfile.mkdtemp(prefix="hearth-anka-")))
    assert fault.cause in result.reported_cause
    assert result.recovered_during_s is not None or result.recovered_after_s is not None
    assert result.hung == 0, "a command outlived its time"
    assert result.left == []
    assert max(result.livez_ms) < STUCK_MS
