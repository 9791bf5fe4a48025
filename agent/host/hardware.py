"""What the host is made of: asked once, at the start."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.processes import sysctl
from agent.processes.command import Command, CommandError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.processes.command import CommandRunner

IOREG_TIMEOUT_S: Final = 10.0
_DMI: Final = Path("/sys/class/dmi/id")
_PROPERTY: Final = re.compile(r'^\s*"(\w+)" = "([^"]*)"$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Hardware:
    """One machine. What cannot be told is empty: Linux shows serial and UUID to root only, virtual machines have none.

    Efficiency cores are the slower ones of a processor that has two kinds; 0 where all are alike.
    """

    model: str = ""
    chip: str = ""
    serial: str = ""
    uuid: str = ""
    performance_cores: int = 0
    efficiency_cores: int = 0


UNKNOWN_HARDWARE: Final = Hardware()


async def read_hardware(runner: CommandRunner) -> Hardware:
    """Read what this machine is made of. Never fails: what cannot be told is empty."""
    if platform.system() != "Darwin":
        return _of_linux(_DMI, Path("/sys/devices"), _cpu_model())
    try:
        result = await runner.run(Command(("/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice"), IOREG_TIMEOUT_S))
        listing = result.stdout.decode(errors="replace")
    except CommandError:
        listing = ""
    return of_mac(parse_ioreg(listing), sysctl.text, sysctl.integer)


def parse_ioreg(listing: str) -> Mapping[str, str]:
    """Return the properties of text that `ioreg` lists."""
    return dict(_PROPERTY.findall(listing))


def of_mac(properties: Mapping[str, str], text: Callable[[str], str], integer: Callable[[str], int]) -> Hardware:
    """Return a Mac's hardware from ioreg's properties and the kernel's names. Level 0 are the performance cores."""

    def asked(name: str) -> str:
        try:
            return text(name)
        except OSError:
            return ""

    def counted(name: str) -> int:
        try:
            return integer(name)
        except OSError:
            return 0

    return Hardware(
        model=asked("hw.model"),
        chip=asked("machdep.cpu.brand_string"),
        serial=properties.get("IOPlatformSerialNumber", ""),
        uuid=properties.get("IOPlatformUUID", ""),
        performance_cores=counted("hw.perflevel0.physicalcpu") or counted("hw.physicalcpu"),
        efficiency_cores=counted("hw.perflevel1.physicalcpu"),
    )


def _of_linux(dmi: Path, devices: Path, chip: str) -> Hardware:
    """Return a Linux host's hardware. Hybrid processors of Intel list their two kinds of cores apart."""
    efficient = _count(_line(devices / "cpu_atom/cpus"))
    return Hardware(
        model=_line(dmi / "product_name"),
        chip=chip,
        serial=_line(dmi / "product_serial"),
        uuid=_line(dmi / "product_uuid"),
        performance_cores=_count(_line(devices / "cpu_core/cpus")) or (os.cpu_count() or 1) - efficient,
        efficiency_cores=efficient,
    )


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _line(Path("/proc/cpuinfo")), re.MULTILINE)
    return found[1] if found else platform.processor()


def _count(ranges: str) -> int:
    """Return how many numbers a list such as `0-7,16` has."""
    ends = [part.partition("-") for part in ranges.split(",") if part]
    return sum(int(last or first) - int(first) + 1 for first, _, last in ends)
