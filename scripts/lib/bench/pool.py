"""The pool benchmark: leases, replacements, the idle agent and the planner; see `scripts/bench/pool`."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
import structlog

from agent.images.service import open_images
from agent.images.vmconfig import Hardware
from scripts.lib.bench import planning, replacement, simulated
from scripts.lib.chaos.versions import Versions, scratch_config
from scripts.lib.host import Host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

Figures = dict[str, Any]

LEASE_WARM: Final = 20
LEASE_ROUNDS: Final = 25
PAUSE_S: Final = 0.05
"""Pause between two leases: at most 20 per second, far more than a host of two VMs gets."""
SIMULATED: Final = 50
SIZES: Final = (10, 100, 1000)
NOTICED: Final = "noticed_s"
"""Key of the seconds from each kill to its event. All measurements are summarised together."""


async def measure_lease(directory: Path, options: argparse.Namespace) -> Figures:
    """Measure hundreds of leases of ready VMs."""
    async with _simulated_host(directory) as (host, image):
        calm = await simulated.lease(host, image, warm=LEASE_WARM, rounds=LEASE_ROUNDS, pause_s=PAUSE_S)
        burst = await simulated.lease(host, image, warm=LEASE_WARM, rounds=LEASE_ROUNDS // 3, pause_s=0)
    return {
        "leases": len(calm.taken_ms),
        "lease_p50_ms": round(_quantile(calm.taken_ms, 50), 2),
        "lease_p99_ms": round(_quantile(calm.taken_ms, 99), 2),
        "lease_burst_p99_ms": round(_quantile(burst.taken_ms, 99), 2),
        "sync_p50_ms": round(_quantile(calm.sync_ms, 50), 2),
        "sync_p99_ms": round(_quantile(calm.sync_ms, 99), 2),
    }


async def measure_sim50(directory: Path, options: argparse.Namespace) -> Figures:
    """Measure the idle agent with 50 simulated VMs."""
    async with _simulated_host(directory) as (host, image):
        percent = await simulated.many_idle_cpu_pct(host, image, count=SIMULATED, over_s=options.idle_s)
        return {"sim50_cpu_pct": round(percent, 2), "sim50_rss_mb": _rss_mb(host.pid)}


async def measure_planning(directory: Path, options: argparse.Namespace) -> Figures:
    """Measure the planner alone."""
    taken_ms = {count: planning.plan_ms(count) for count in SIZES}
    return {f"plan_{count}_ms": round(taken, 3) for count, taken in taken_ms.items()}


async def measure_idle(directory: Path, options: argparse.Namespace) -> Figures:
    """Measure the idle agent with two real VMs and default probes."""
    async with _real_host(directory) as (host, versions):
        version = await versions.push_good()
        host.assign(replacement.POOL, version.reference, warm=replacement.WARM, probes="")
        await host.wait_until_warm(replacement.WARM)
        percent = await simulated.idle_cpu_pct(host, over_s=options.idle_s)
        return {"idle_cpu_pct": round(percent, 2), "idle_rss_mb": _rss_mb(host.pid)}


async def measure_boot(directory: Path, options: argparse.Namespace) -> Figures:
    """Kill and hang real VMs that the agent replaces by a boot, alternating with bare QEMU."""
    async with _real_host(directory) as (host, versions):
        taken = await replacement.measure_boots(host, versions, kills=options.kills, hangs=options.hangs)
    floor_s, replaced_s = statistics.median(taken.floor_s), statistics.median(taken.replaced_s)
    hang_s = statistics.median(taken.hang_noticed_s)
    return {
        NOTICED: taken.notice_s,
        "bare_boot_s": round(floor_s, 3),
        "replaced_by_boot_s": round(replaced_s, 3),
        "replace_vs_boot": round(replaced_s / floor_s, 3),
        "hang_noticed_s": round(hang_s, 2),
        "hang_replaced_s": round(statistics.median(taken.hang_replaced_s), 2),
        "hang_budget_s": replacement.BUDGET_S,
        "hang_vs_budget": round(hang_s / replacement.BUDGET_S, 3),
    }


async def measure_resume(directory: Path, options: argparse.Namespace) -> Figures:
    """Kill real VMs that the agent replaces from a template, alternating with bare QEMU."""
    async with _real_host(directory) as (host, versions):
        taken = await replacement.measure_resumes(host, versions, kills=options.kills)
    floor_s, replaced_s = statistics.median(taken.floor_s), statistics.median(taken.replaced_s)
    return {
        NOTICED: taken.notice_s,
        "bare_resume_s": round(floor_s, 3),
        "replaced_by_resume_s": round(replaced_s, 3),
        "replace_vs_resume": round(replaced_s / floor_s, 3),
    }


MEASUREMENTS: Final[dict[str, Callable[[Path, argparse.Namespace], Awaitable[Figures]]]] = {
    "planning": measure_planning,
    "lease": measure_lease,
    "sim50": measure_sim50,
    "idle": measure_idle,
    "boot": measure_boot,
    "resume": measure_resume,
}


@asynccontextmanager
async def _simulated_host(directory: Path) -> AsyncIterator[tuple[Host, str]]:
    """Start a host with simulated VMs; yield it and the reference of an image for them."""
    host = Host(directory / "host")
    try:
        simulated.configure(host)
        reference = f"oci-layout:{directory}/registry:1"
        async with open_images(scratch_config(directory)) as images:
            disk = await asyncio.to_thread(simulated.tiny_disk, directory / "disk.img")
            await images.push(disk, reference, hardware=Hardware(os="linux", arch="amd64", cpus=1, memory_mib=64))
        await host.start()
        yield host, reference
        await host.stop()
    finally:
        await host.close()


@asynccontextmanager
async def _real_host(directory: Path) -> AsyncIterator[tuple[Host, Versions]]:
    """Start a host with real VMs; yield it and a source of image versions."""
    host = Host(directory / "host")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(host.close)
        versions = Versions(directory, await stack.enter_async_context(open_images(scratch_config(directory))))
        await versions.build()
        host.configure(slots=replacement.WARM)
        await host.start()
        yield host, versions


def _quantile(values: Sequence[float], percent: int) -> float:
    """Return a percentile: the smallest value that at least `percent` % of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def _rss_mb(pid: int) -> float:
    return round(psutil.Process(pid).memory_info().rss / 1e6, 1)


async def measure(names: Sequence[str], options: argparse.Namespace) -> Figures:
    """Take the named measurements, each in a temporary directory."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # otherwise SIGTERM leaves VMs behind
    figures: Figures = {"load_before": os.getloadavg()[0], "cores": os.cpu_count()}
    noticed_s: list[float] = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix=f"hearth-bench-{name}-") as directory:
            found = await MEASUREMENTS[name](Path(directory), options)
        sys.stderr.write(f"{name}: {json.dumps(found)}\n")
        noticed_s += found.pop(NOTICED, [])
        figures |= found
    if noticed_s:
        figures["kills"] = len(noticed_s)
        figures["notice_p50_ms"] = round(statistics.median(noticed_s) * 1000, 1)
        figures["notice_p99_ms"] = round(_quantile(noticed_s, 99) * 1000, 1)
    figures["load_after"] = os.getloadavg()[0]
    return figures


def main() -> int:
    """Parse the arguments, measure, and print."""
    parser = argparse.ArgumentParser(prog="scripts/bench/pool", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON line on stdout")
    parser.add_argument("--only", nargs="+", choices=sorted(MEASUREMENTS), default=list(MEASUREMENTS))
    parser.add_argument("--idle-s", type=float, default=30.0, help="seconds to measure an idle agent (default 30)")
    parser.add_argument("--kills", type=int, default=6, help="VMs to kill of each kind (default 6)")
    parser.add_argument("--hangs", type=int, default=2, help="VMs to hang (default 2)")
    options = parser.parse_args()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING)
    )  # hide the info lines of this process's own pushes
    figures = asyncio.run(measure(options.only, options))
    if options.json:
        sys.stdout.write(json.dumps(figures) + "\n")
    else:
        sys.stdout.write("".join(f"{name}: {value}\n" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
