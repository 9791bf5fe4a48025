"""How the host is right now: memory pressure and heat, as its own kernel judges them."""

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
    """How short memory is."""

    NORMAL = "normal"
    WARNING = "warning"
    CRITICAL = "critical"
    UNKNOWN = "unknown"


class Heat(StrEnum):
    """How much heat slows the processor, in the steps of macOS."""

    NOMINAL = "nominal"
    MODERATE = "moderate"
    HEAVY = "heavy"
    CRITICAL = "critical"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Vitals:
    """The host's state as last measured, in steps that do not move by themselves: pollers see every change.

    Purgeable space is that of the data volume, in whole GiB; None where it cannot be told.
    """

    memory_pressure: MemoryPressure = MemoryPressure.UNKNOWN
    heat: Heat = Heat.UNKNOWN
    purgeable_bytes: int | None = None


class VitalsSampler:
    """The latest vitals, measured every `PERIOD_S` seconds while `run` runs."""

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
"""Shares of the last 10 s, in percent, in which some tasks, or all at once, waited for memory."""


def measure_vitals(data_dir: Path) -> Vitals:
    """Measure now. Blocks: apart from free space, which decisions hang on. What cannot be told is unknown."""
    if _ON_MAC:
        return Vitals(_mac_pressure(), _mac_heat(), _purgeable(data_dir))
    try:
        stalls = Path("/proc/pressure/memory").read_text(encoding="ascii")
    except OSError:
        stalls = ""
    return Vitals(pressure_of_stalls(stalls))


def _purgeable(data_dir: Path) -> int | None:
    try:
        return whole_gib(purgeable_bytes(data_dir))
    except OSError:
        return None


def whole_gib(size_bytes: int | None) -> int | None:
    """Round a size in bytes down to whole GiB. Nobody decides by less, and caches grow and shrink all the time."""
    return None if size_bytes is None else size_bytes // GIB * GIB


def pressure_of_stalls(text: str) -> MemoryPressure:
    """Judge memory by the kernel's stall information; Linux has no word of its own for it."""
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
    """Read the level that the system posts to whoever registers for it (notify(3), OSThermalNotification.h)."""
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
