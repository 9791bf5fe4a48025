"""The documents of resource usage."""

from __future__ import annotations

from datetime import datetime

from agent.api.schemas import Amount, Count, Document
from agent.domain.states import VmState


class HostUsage(Document):
    """The machine. `cpu_busy_s` is the sum over all processors: at most `cpus` more each second."""

    cpus: Count
    cpu_busy_s: Amount
    load_1m: Amount
    memory_total_bytes: Count
    memory_available_bytes: Count


class VmUsage(Document):
    """One VM: its processor time since its start, and its memory. Both are zero while it does not run."""

    name: str
    pool: str
    state: VmState
    cpus: Count
    memory_mib: Count
    cpu_s: Amount
    resident_bytes: Count


class UsageDocument(Document):
    """Usage at one moment. Read it twice: the difference of processor time over the difference of `at` is the share."""

    at: datetime
    host: HostUsage
    vms: tuple[VmUsage, ...]
