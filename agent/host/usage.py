"""Resource usage of VMs: processor time and memory of the processes that have the VM's name in their command line.

This needs no driver, because every supported hypervisor has the name of the VM in the command line of its process.
Processes on a terminal are excluded: a user can type the name of a VM into a command.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

SAMPLE_TTL_S: Final = 0.5
"""Time for which a sample is shared, so that the processes are not read once for each caller."""

_TIMEOUT_S: Final = 10.0
_ATTRIBUTES: Final = ("cmdline", "cpu_times", "memory_info", "terminal")


@dataclass(frozen=True, slots=True)
class VmUsage:
    """Usage of one VM: processor time since the start of its processes, and current resident memory."""

    cpu_s: float
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Usage of the machine and its VMs at one time. `cpu_busy_s` is the sum of all processors since boot."""

    at_s: float
    cpus: int
    cpu_busy_s: float
    load_1m: float
    memory_total_bytes: int
    memory_available_bytes: int
    vms: Mapping[str, VmUsage]


class UsageSampler:
    """Measures the usage once for all concurrent callers."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._sampled_s = float("-inf")
        self._latest: Usage | None = None

    async def sample(self, names: tuple[str, ...]) -> Usage:
        """Return a sample that is at most `SAMPLE_TTL_S` old. Raises `TimeoutError` after 10 s."""
        async with asyncio.timeout(_TIMEOUT_S), self._lock:
            if self._latest is None or time.monotonic() - self._sampled_s > SAMPLE_TTL_S:
                self._latest = await asyncio.to_thread(measure_usage, names)
                self._sampled_s = time.monotonic()
            return self._latest


def measure_usage(names: Collection[str]) -> Usage:
    """Measure the usage of the VMs with these names. Blocks for some milliseconds: call it in a thread."""
    times, memory = psutil.cpu_times(), psutil.virtual_memory()
    idle_s = times.idle + getattr(times, "iowait", 0.0)
    return Usage(
        at_s=time.time(),
        cpus=os.cpu_count() or 1,
        cpu_busy_s=max(0.0, sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0) - idle_s),
        load_1m=os.getloadavg()[0],
        memory_total_bytes=memory.total,
        memory_available_bytes=memory.available,
        vms=_measure_vms(names),
    )


def _measure_vms(names: Collection[str]) -> dict[str, VmUsage]:
    found: dict[str, VmUsage] = {}
    if not names:
        return found
    # Longest names first: otherwise a name that is a prefix of another one would match in its place.
    pattern = re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)))
    for process in psutil.process_iter(_ATTRIBUTES):
        info = process.info
        named = pattern.search(" ".join(info["cmdline"] or ()))
        if named is None or info["terminal"] or info["cpu_times"] is None or info["memory_info"] is None:
            continue
        before = found.get(named[0], VmUsage(0.0, 0))
        times = info["cpu_times"]
        found[named[0]] = VmUsage(
            before.cpu_s + times.user + times.system, before.resident_bytes + info["memory_info"].rss
        )
    return found
