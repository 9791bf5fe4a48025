"""The API's usage documents, as `agent.cli.documents`, and the processor shares that this CLI computes from them."""

from __future__ import annotations

from typing import TypedDict


class HostUsage(TypedDict):
    """The load of the host; `cpu_busy_s` adds up over all processors."""

    cpus: int
    cpu_busy_s: float
    load_1m: float
    memory_total_bytes: int
    memory_available_bytes: int


class VmUsage(TypedDict):
    """The processor time of one VM since it started, and the memory it holds now."""

    name: str
    pool: str
    state: str
    cpus: int
    memory_mib: int
    cpu_s: float
    resident_bytes: int


class UsageDocument(TypedDict):
    """The usage of the host and its VMs at one moment."""

    at: str
    host: HostUsage
    vms: list[VmUsage]


class HostRates(HostUsage):
    """The load of the host, with the share of its processors that was busy since the reading before."""

    cpu_percent: float


class VmRates(VmUsage):
    """The usage of one VM, with its processor share since the reading before; 100 is one whole processor."""

    cpu_percent: float


class UsageRates(TypedDict):
    """The usage with processor shares, which this CLI computes from two readings."""

    at: str
    host: HostRates
    vms: list[VmRates]
