"""Hardware of the host, read once at the start of the agent."""

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
    """Hardware of one machine. Unknown values are empty: Linux shows serial and UUID only to root, and VMs have none.

    Efficiency cores are the slower cores of a processor with two kinds; 0 if all cores are equal.
    """

    model: str = ""
    chip: str = ""
    serial: str = ""
    uuid: str = ""
    performance_cores: int = 0
    efficiency_cores: int = 0


UNKNOWN_HARDWARE: Final = Hardware()


async def read_hardware(runner: CommandRunner) -> Hardware:
    """Read the hardware of this machine. Never raises; unknown values are empty."""
    if platform.system() != "Darwin":
        return _linux_hardware(_DMI, Path("/sys/devices"), _cpu_model())
    try:
        result = await runner.run(Command(("/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice"), IOREG_TIMEOUT_S))
        listing = result.stdout.decode(errors="replace")
    except CommandError:
        listing = ""
    return mac_hardware(parse_ioreg(listing), sysctl.text, sysctl.integer)


def parse_ioreg(listing: str) -> Mapping[str, str]:
    """Return the text properties in the output of `ioreg`."""
    return dict(_PROPERTY.findall(listing))


def mac_hardware(properties: Mapping[str, str], text: Callable[[str], str], integer: Callable[[str], int]) -> Hardware:
    """Return the hardware of a Mac from properties of ioreg and values of sysctl.

    Performance level 0 contains the performance cores.
    """

    def read_text(name: str) -> str:
        try:
            return text(name)
        except OSError:
            return ""

    def read_count(name: str) -> int:
        try:
            return integer(name)
        except OSError:
            return 0

    return Hardware(
        model=read_text("hw.model"),
        chip=read_text("machdep.cpu.brand_string"),
        serial=properties.get("IOPlatformSerialNumber", ""),
        uuid=properties.get("IOPlatformUUID", ""),
        performance_cores=read_count("hw.perflevel0.physicalcpu") or read_count("hw.physicalcpu"),
        efficiency_cores=read_count("hw.perflevel1.physicalcpu"),
    )


def _linux_hardware(dmi: Path, devices: Path, chip: str) -> Hardware:
    """Return the hardware of a Linux host. Hybrid processors of Intel list their two kinds of cores separately."""
    efficient = _count_numbers(_read_line(devices / "cpu_atom/cpus"))
    return Hardware(
        model=_read_line(dmi / "product_name"),
        chip=chip,
        serial=_read_line(dmi / "product_serial"),
        uuid=_read_line(dmi / "product_uuid"),
        performance_cores=_count_numbers(_read_line(devices / "cpu_core/cpus")) or (os.cpu_count() or 1) - efficient,
        efficiency_cores=efficient,
    )


def _read_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _read_line(Path("/proc/cpuinfo")), re.MULTILINE)
    return found[1] if found else platform.processor()


def _count_numbers(ranges: str) -> int:
    """Return how many numbers a list such as `0-7,16` contains."""
    ends = [part.partition("-") for part in ranges.split(",") if part]
    return sum(int(last or first) - int(first) + 1 for first, _, last in ends)
