"""What VMs take of their host, as it crosses HTTP."""

from __future__ import annotations

from datetime import datetime

from agent.api.schemas import Amount, Count, Document
from agent.domain.states import VmState


class HostUsage(Document):
    """The machine: `cpu_busy_s` adds up over all processors, so its growth by `cpus` a second is a busy machine."""

    cpus: Count
    cpu_busy_s: Amount
    load_1m: Amount
    memory_total_bytes: Count
    memory_available_bytes: Count


class VmUsage(Document):
    """One VM: the processor time it has taken since it started, and the memory it holds. Zero while it does not run."""

    name: str
    pool: str
    state: VmState
    cpus: Count
    memory_mib: Count
    cpu_s: Amount
    resident_bytes: Count


class UsageDocument(Document):
    """What is taken at one moment. Ask twice: a share of processor time is the difference over that of `at`."""

    at: datetime
    host: HostUsage
    vms: tuple[VmUsage, ...]
