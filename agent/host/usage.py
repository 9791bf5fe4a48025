"""What VMs take of this machine: processor time and memory of the processes that carry their names.

Drivers need not be asked for it: every hypervisor here names the VM on its process's command line. Processes on a
terminal are people's, who may name a VM too.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_ATTRIBUTES: Final = ("cmdline", "cpu_times", "memory_info", "terminal")


@dataclass(frozen=True, slots=True)
class VmUsage:
    """One VM: processor time since its process began, and memory it holds now."""

    cpu_s: float
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class Usage:
    """The machine and its VMs at one moment. `cpu_busy_s` adds up over all processors since the machine booted."""

    at_s: float
    cpus: int
    cpu_busy_s: float
    load_1m: float
    memory_total_bytes: int
    memory_available_bytes: int
    vms: Mapping[str, VmUsage]


def measure(names: Collection[str]) -> Usage:
    """Read what the VMs of these names take. Blocks for some milliseconds: call it in a thread."""
    times, memory = psutil.cpu_times(), psutil.virtual_memory()
    idle_s = times.idle + getattr(times, "iowait", 0.0)
    return Usage(
        at_s=time.time(),
        cpus=os.cpu_count() or 1,
        cpu_busy_s=max(0.0, sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0) - idle_s),
        load_1m=os.getloadavg()[0],
        memory_total_bytes=memory.total,
        memory_available_bytes=memory.available,
        vms=_of_vms(names),
    )


def _of_vms(names: Collection[str]) -> dict[str, VmUsage]:
    found: dict[str, VmUsage] = {}
    if not names:
        return found
    # The longest first: no name is taken for another one that it begins with.
    pattern = re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)))
    for process in psutil.process_iter(_ATTRIBUTES):
        about = process.info
        named = pattern.search(" ".join(about["cmdline"] or ()))
        if named is None or about["terminal"] or about["cpu_times"] is None or about["memory_info"] is None:
            continue
        before = found.get(named[0], VmUsage(0.0, 0))
        times = about["cpu_times"]
        found[named[0]] = VmUsage(
            before.cpu_s + times.user + times.system, before.resident_bytes + about["memory_info"].rss
        )
    return found
