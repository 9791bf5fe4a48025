"""Every fault of a Mac's hypervisor tool in turn, under a whole agent: reported cause, recovery, API latency.

Each fault runs on its own simulated Mac with one warm VM. The fault is set, and the agent must use the failing tool.
The agent either recovers or reports a cause; then the fault is removed, and the pool must fill again. `/livez` is
polled during the whole run. See `scripts/bench/mac-faults`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scripts.lib.bench import anka_faults, tart_faults
from scripts.lib.bench.fault_result import p99

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from scripts.lib.bench.fault_result import Fault, FaultResult

LIVEZ_LIMIT_MS: Final = 50.0
"""Limit for the 99th percentile of `/livez` while a tool fails."""
HEAD: Final = "| {tool}: fault | outcome | seconds | /livez p99, ms | ok |\n|---|---|---|---|---|\n"


async def measure(
    try_fault: Callable[[Fault, Path], Awaitable[FaultResult]], faults: Sequence[Fault]
) -> list[FaultResult]:
    """Measure faults one after another."""
    results = []
    for fault in faults:
        result = await try_fault(fault, Path(tempfile.mkdtemp(prefix="hearth-fault-")))
        sys.stderr.write(f"{result.row()}\n")
        results.append(result)
    return results


def main() -> int:
    """Measure all faults, or the selected ones; print the tables."""
    parser = argparse.ArgumentParser(prog="scripts/bench/mac-faults", description=__doc__)
    parser.add_argument("--hypervisor", choices=("tart", "anka"), help="one tool; default: both")
    parser.add_argument("--only", nargs="+", default=[], help="faults with one of these texts in their name")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON line on stdout, last")
    options = parser.parse_args()
    all_results: list[FaultResult] = []
    for tool, module in (("tart", tart_faults), ("anka", anka_faults)):
        if options.hypervisor not in (tool, None):
            continue
        chosen = [one for one in module.FAULTS if not options.only or any(part in one.name for part in options.only)]
        results = asyncio.run(measure(module.try_fault, chosen))
        sys.stdout.write(HEAD.format(tool=tool) + "".join(f"{result.row()}\n" for result in results))
        all_results += results
    good = all(result.ok for result in all_results)
    if options.json:
        figures = {
            "faults": len(all_results),
            "ok": good,
            "livez_p99_ms": p99([took for result in all_results for took in result.livez_ms]),
            "livez_p99_worst_row_ms": max(result.p99_ms for result in all_results),
            "rows_above_50_ms": [result.fault.name for result in all_results if result.p99_ms > LIVEZ_LIMIT_MS],
        }
        sys.stdout.write(json.dumps(figures) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
