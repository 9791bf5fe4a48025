"""Checks of power, heat, memory and hardware: what slows a Mac or sends it to sleep."""

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
_PRESSURE: Final = {"1": "normal", "2": "warning", "4": "critical"}


def settings(text: str) -> dict[str, int]:
    """Return the power settings of `pmset -g custom` that count on mains: a Mac mini has no other section."""
    mains = text.partition("AC Power:")[2] or text
    return {name: int(value) for name, value in _SETTING.findall(mains.partition("Battery Power:")[0])}


def sleep(readings: Readings, _: Subject) -> CheckResult | None:
    """Judge whether the Mac stays awake."""
    found = settings(readings["pmset"].out)
    asleep = {name: found[name] for name in ("sleep", "standby", "disksleep") if found.get(name)}
    fix = Fix(((_PMSET, "-a", "sleep", "0", "disksleep", "0", "standby", "0"),))
    evidence = ", ".join(f"{name} {value}" for name, value in asleep.items())
    if "sleep" not in found:
        return unknown("pmset does not tell when this Mac sleeps")
    if found["sleep"]:
        return CheckResult(
            ERROR, f"this Mac sleeps after {found['sleep']} idle minutes", evidence, "let it never sleep", fix
        )
    if asleep:
        return CheckResult(WARNING, "the disk may sleep, or the Mac deeply", evidence, "let nothing sleep", fix)
    return passed("it never sleeps", "sleep 0")


def power_loss(readings: Readings, _: Subject) -> CheckResult | None:
    """Judge whether the Mac comes back by itself after a power failure."""
    on = settings(readings["pmset"].out).get("autorestart")
    if on is None:
        return unknown("pmset does not tell what happens after a power failure")
    if on:
        return passed("it starts again after a power failure", "autorestart 1")
    fix = Fix(((_PMSET, "-a", "autorestart", "1"),))
    return CheckResult(WARNING, "it stays off after a power failure", "autorestart 0", "let it start by itself", fix)


def low_power(readings: Readings, _: Subject) -> CheckResult | None:
    """Judge whether low power mode slows every build."""
    if not settings(readings["pmset"].out).get("lowpowermode"):
        return passed("low power mode is off")
    fix = Fix(((_PMSET, "-a", "lowpowermode", "0"),))
    return CheckResult(WARNING, "low power mode slows every build", "lowpowermode 1", "turn it off", fix)


def thermal(readings: Readings, _: Subject) -> CheckResult | None:
    """Judge whether heat slows the processor."""
    text = readings["thermal"].out
    limits = [int(value) for value in _SPEED.findall(text)]
    if limits and min(limits) < 100:
        told = f"CPU_Speed_Limit {min(limits)}"
        return CheckResult(WARNING, f"heat holds the processor at {min(limits)} %", told, "see to fans, dust and air")
    if re.search(r"thermal warning level set|Thermal Warning Level = [1-9]", text):
        return CheckResult(WARNING, "macOS warns of heat", text.strip()[-200:], "see to fans, dust and air")
    return passed("no heat that slows it")


def memory(readings: Readings, _: Subject) -> CheckResult | None:
    """Judge whether memory is short."""
    level = _PRESSURE.get(readings["pressure"].out.strip())
    if level is None:
        return unknown(f"memory pressure reads {readings['pressure'].out.strip()[:40]!r}")
    used = _SWAP_USED.search(readings["swap"].out)
    evidence = f"pressure {level}" + (f", {used[1]} MB swapped" if used else "") + _compressed(readings["vm_stat"].out)
    if level == "normal":
        return passed("memory suffices", evidence)
    remedy = "give VMs less memory in the assignment, or raise host.memory_reserve_mib"
    return CheckResult(ERROR if level == "critical" else WARNING, f"memory pressure is {level}", evidence, remedy)


def _compressed(text: str) -> str:
    size = re.search(r"page size of (\d+) bytes", text)
    pages = re.search(r"Pages occupied by compressor:\s+(\d+)", text)
    return f", {int(size[1]) * int(pages[1]) >> 20} MiB compressed" if size and pages else ""


def hardware(readings: Readings, _: Subject) -> CheckResult | None:
    """Judge whether this Mac can run macOS VMs at all."""
    try:
        (item,) = json.loads(readings["hardware"].out)["SPHardwareDataType"]
    except (ValueError, KeyError, TypeError):
        return unknown("system_profiler does not tell what this Mac is")
    chip = str(item.get("chip_type") or item.get("cpu_type") or "unknown")
    told = (
        f"{item.get('machine_name', 'Mac')} {item.get('machine_model', '')}, {chip}, {item.get('physical_memory', '')}"
    )
    if not chip.startswith("Apple"):
        return CheckResult(ERROR, f"{chip} cannot run macOS VMs", told, "use a Mac with Apple silicon")
    return passed(told)
