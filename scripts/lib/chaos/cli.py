"""The command line of `scripts/chaos`."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import shutil
import signal
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from scripts.lib.chaos.event_trace import Violation
from scripts.lib.chaos.run import Outcome, Run

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rounds; return 0 when no round found a violation."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="rounds of each seed (default 10)")
    parser.add_argument("--seed", type=int, help="one seed; default: a new one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="several seeds, one after another")
    parser.add_argument("--slots", type=int, default=2, help="VMs that may run at the same time (default 2)")
    parser.add_argument(
        "--hypervisor",
        choices=("qemu", "tart", "anka"),
        default="qemu",
        help="qemu: real VMs; tart, anka: a simulated Mac (default qemu)",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON line on stdout")
    options = parser.parse_args(arguments)
    seeds = [*options.seeds, *([options.seed] if options.seed is not None else [])]
    seeds = seeds or [int.from_bytes(os.urandom(3))]
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING)
    )  # hide the info lines of this process's own pushes
    try:
        outcomes = asyncio.run(_run(seeds, options.rounds, options.slots, options.hypervisor))
    except asyncio.CancelledError:
        return 130
    figures = summary(outcomes)
    if options.json:
        sys.stdout.write(json.dumps(figures) + "\n")
    else:
        sys.stdout.write("".join(f"{name}: {value}\n" for name, value in figures.items()))
    return 0 if figures["ok"] else 1


async def _run(seeds: list[int], rounds: int, slots: int, hypervisor: str) -> list[Outcome]:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    outcomes = []
    for seed in seeds:
        directory = Path(tempfile.mkdtemp(prefix=f"hearth-chaos-{seed}-"))
        try:
            outcome = await Run(seed, directory, slots=slots, hypervisor=hypervisor).run_rounds(rounds)
        except asyncio.CancelledError:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        outcomes.append(outcome)
        if outcome.findings:
            sys.stderr.write(
                f"seed {seed} failed in round {outcome.rounds}; its log, journal and evidence are in {directory}\n"
                f"replay: scripts/chaos --rounds {outcome.rounds} --seed {seed} --slots {slots} "
                f"--hypervisor {hypervisor}\n"
            )
        else:
            shutil.rmtree(directory)
    return outcomes


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the totals over all seeds."""
    violations = Counter(finding.violation for outcome in outcomes for finding in outcome.findings)
    counts: Counter[str] = sum((outcome.expected.counts for outcome in outcomes), Counter())
    seconds = [took_s for outcome in outcomes for took_s in outcome.seconds]
    return {
        "rounds": sum(outcome.rounds for outcome in outcomes),
        "seeds": len(outcomes),
        **{str(kind): violations[kind] for kind in Violation},
        **dict(sorted(counts.items())),
        "failed_seeds": [outcome.seed for outcome in outcomes if outcome.findings],
        "round_mean_s": round(statistics.fmean(seconds), 1),
        "round_max_s": round(max(seconds), 1),
        "ok": not violations,
    }


if __name__ == "__main__":
    sys.exit(main())
