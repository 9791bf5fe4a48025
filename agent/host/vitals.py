"""Vitals of the host: memory pressure, thermal pressure and purgeable space, as its kernel reports them."""

from __future__ import annotations

import asyncio
import ctypes
import platform
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.host.disk_space import purgeable_bytes
from agent.processes import sysctl

if TYPE_CHECKING:
    from collections.abc import Callable

PERIOD_S: Final = 10.0
GIB: Final = 1 << 30
_ON_MAC: Final = platform.system() == "Darwin"


class MemoryPressure(StrEnum):
    """Memory pressure levels."""

    NORMAL = "normal"
    WARNING = "warning"
    CRITICAL = "critical"
    UNKNOWN = "unknown"


class Heat(StrEnum):
    """Thermal pressure levels of macOS: how much heat slows the processor."""

    NOMINAL = "nominal"
    MODERATE = "moderate"
    HEAVY = "heavy"
    CRITICAL = "critical"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Vitals:
    """The vitals as last measured, in coarse steps, because clients that poll get a new document for each change.

    `purgeable_bytes` is for the data volume, rounded down to whole GiB; None if unknown.
    """

    memory_pressure: MemoryPressure = MemoryPressure.UNKNOWN
    heat: Heat = Heat.UNKNOWN
    purgeable_bytes: int | None = None


class VitalsSampler:
    """Measures the vitals every `PERIOD_S` seconds while `run` is active; `latest` is the last result."""

    def __init__(self, measure: Callable[[], Vitals]) -> None:
        self._measure = measure
        self.latest = Vitals()

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            self.latest = await asyncio.to_thread(self._measure)
            await asyncio.sleep(PERIOD_S)


_MAC_PRESSURE: Final = {1: MemoryPressure.NORMAL, 2: MemoryPressure.WARNING, 4: MemoryPressure.CRITICAL}
_MAC_HEAT: Final = (Heat.NOMINAL, Heat.MODERATE, Heat.HEAVY, Heat.CRITICAL, Heat.CRITICAL)
_THERMAL_NOTICE: Final = b"com.apple.system.thermalpressurelevel"

_PSI: Final = re.compile(r"^(some|full) avg10=([\d.]+)", re.MULTILINE)
SOME_WARNING: Final = 10.0
FULL_CRITICAL: Final = 20.0
"""Shares of the last 10 s, in percent, in which some tasks, or all tasks at the same time, waited for memory."""


def measure_vitals(data_dir: Path) -> Vitals:
    """Measure now. Blocks. Unknown values are `UNKNOWN` or None.

    Free space is not included: decisions depend on it, so the observer measures it.
    """
    if _ON_MAC:
        return Vitals(_mac_pressure(), _mac_heat(), _purgeable(data_dir))
    try:
        stalls = Path("/proc/pressure/memory").read_text(encoding="ascii")
    except OSError:
        stalls = ""
    return Vitals(pressure_from_stalls(stalls))


def _purgeable(data_dir: Path) -> int | None:
    try:
        return whole_gib(purgeable_bytes(data_dir))
    except OSError:
        return None


def whole_gib(size_bytes: int | None) -> int | None:
    """Round a size in bytes down to whole GiB, because caches grow and shrink all the time."""
    return None if size_bytes is None else size_bytes // GIB * GIB


def pressure_from_stalls(text: str) -> MemoryPressure:
    """Return the memory pressure from the stall information (PSI) of Linux, which has no levels of its own."""
    shares = {kind: float(share) for kind, share in _PSI.findall(text)}
    if "some" not in shares:
        return MemoryPressure.UNKNOWN
    if shares.get("full", 0.0) >= FULL_CRITICAL:
        return MemoryPressure.CRITICAL
    return MemoryPressure.WARNING if shares["some"] >= SOME_WARNING else MemoryPressure.NORMAL


def _mac_pressure() -> MemoryPressure:
    try:
        return _MAC_PRESSURE.get(sysctl.integer("kern.memorystatus_vm_pressure_level"), MemoryPressure.UNKNOWN)
    except OSError:
        return MemoryPressure.UNKNOWN


def _mac_heat() -> Heat:
    """Read the thermal level that macOS publishes with notify(3) (OSThermalNotification.h)."""
    libc = ctypes.CDLL(None)
    token, level = ctypes.c_int(), ctypes.c_uint64()
    if libc.notify_register_check(_THERMAL_NOTICE, ctypes.byref(token)):
        return Heat.UNKNOWN
    try:
        if libc.notify_get_state(token, ctypes.byref(level)):
            return Heat.UNKNOWN
    finally:
        libc.notify_cancel(token)
    return _MAC_HEAT[level.value] if level.value < len(_MAC_HEAT) else Heat.UNKNOWN
