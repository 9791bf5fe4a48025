"""Checks of power, thermal state, memory and hardware."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from agent.host.doctor.model import ERROR, WARNING, CheckResult, Fix, passed, unknown

if TYPE_CHECKING:
    from agent.host.doctor.model import Readings, Subject

_PMSET: Final = "/usr/bin/pmset"
_SETTING: Final = re.compile(r"^ +([A-Za-z]+) +(\d+)", re.MULTILINE)
_SPEED: Final = re.compile(r"CPU_Speed_Limit\s*=\s*(\d+)")
_SWAP_USED: Final = re.compile(r"used = ([\d.]+)M")
_COOLING: Final = "check fans, dust and the air temperature"
_PRESSURE: Final = {"1": "normal", "2": "warning", "4": "critical"}


def parse_settings(text: str) -> dict[str, int]:
    """Return the settings of `pmset -g custom` for AC power. A Mac mini has no other section."""
    on_ac = text.partition("AC Power:")[2] or text
    return {name: int(value) for name, value in _SETTING.findall(on_ac.partition("Battery Power:")[0])}


def check_sleep(readings: Readings, _: Subject) -> CheckResult | None:
    """Check that the Mac does not sleep."""
    found = parse_settings(readings["pmset"].out)
    sleeping = {name: found[name] for name in ("sleep", "standby", "disksleep") if found.get(name)}
    fix = Fix(((_PMSET, "-a", "sleep", "0", "disksleep", "0", "standby", "0"),))
    evidence = ", ".join(f"{name} {value}" for name, value in sleeping.items())
    if "sleep" not in found:
        return unknown("pmset does not report when this Mac sleeps")
    if found["sleep"]:
        return CheckResult(
            ERROR, f"this Mac sleeps after {found['sleep']} idle minutes", evidence, "disable sleep", fix
        )
    if sleeping:
        return CheckResult(WARNING, "disk sleep or standby is enabled", evidence, "disable disk sleep and standby", fix)
    return passed("sleep is disabled", "sleep 0")


def check_power_loss(readings: Readings, _: Subject) -> CheckResult | None:
    """Check that the Mac starts after a power failure."""
    on = parse_settings(readings["pmset"].out).get("autorestart")
    if on is None:
        return unknown("pmset does not report what happens after a power failure")
    if on:
        return passed("this Mac starts after a power failure", "autorestart 1")
    fix = Fix(((_PMSET, "-a", "autorestart", "1"),))
    return CheckResult(
        WARNING, "this Mac stays off after a power failure", "autorestart 0", "enable automatic restart", fix
    )


def check_low_power(readings: Readings, _: Subject) -> CheckResult | None:
    """Check that low power mode is off."""
    if not parse_settings(readings["pmset"].out).get("lowpowermode"):
        return passed("low power mode is off")
    fix = Fix(((_PMSET, "-a", "lowpowermode", "0"),))
    return CheckResult(WARNING, "low power mode slows every build", "lowpowermode 1", "disable low power mode", fix)


def check_thermal(readings: Readings, _: Subject) -> CheckResult | None:
    """Check that heat does not slow the processor."""
    text = readings["thermal"].out
    limits = [int(value) for value in _SPEED.findall(text)]
    if limits and min(limits) < 100:
        evidence = f"CPU_Speed_Limit {min(limits)}"
        return CheckResult(WARNING, f"heat limits the processor to {min(limits)} %", evidence, _COOLING)
    if re.search(r"thermal warning level set|Thermal Warning Level = [1-9]", text):
        return CheckResult(WARNING, "macOS reports thermal pressure", text.strip()[-200:], _COOLING)
    return passed("heat does not slow the processor")


def check_memory(readings: Readings, _: Subject) -> CheckResult | None:
    """Check that memory pressure is normal."""
    level = _PRESSURE.get(readings["pressure"].out.strip())
    if level is None:
        return unknown(f"unknown memory pressure {readings['pressure'].out.strip()[:40]!r}")
    used = _SWAP_USED.search(readings["swap"].out)
    evidence = f"pressure {level}" + (f", {used[1]} MB swapped" if used else "") + _compressed(readings["vm_stat"].out)
    if level == "normal":
        return passed("memory pressure is normal", evidence)
    remedy = "give VMs less memory in the assignment, or raise host.memory_reserve_mib"
    return CheckResult(ERROR if level == "critical" else WARNING, f"memory pressure is {level}", evidence, remedy)


def _compressed(text: str) -> str:
    size = re.search(r"page size of (\d+) bytes", text)
    pages = re.search(r"Pages occupied by compressor:\s+(\d+)", text)
    return f", {int(size[1]) * int(pages[1]) >> 20} MiB compressed" if size and pages else ""


def check_hardware(readings: Readings, _: Subject) -> CheckResult | None:
    """Check that this Mac can run macOS VMs."""
    try:
        (item,) = json.loads(readings["hardware"].out)["SPHardwareDataType"]
    except (ValueError, KeyError, TypeError):
        return unknown("system_profiler does not report the hardware")
    chip = str(item.get("chip_type") or item.get("cpu_type") or "unknown")
    machine = (
        f"{item.get('machine_name', 'Mac')} {item.get('machine_model', '')}, {chip}, {item.get('physical_memory', '')}"
    )
    if not chip.startswith("Apple"):
        return CheckResult(ERROR, f"{chip} cannot run macOS VMs", machine, "use a Mac with Apple silicon")
    return passed(machine)
