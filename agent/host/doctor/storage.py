"""Checks of the disk: room, kind, and what else reads or keeps the VMs' files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from agent.host.doctor.model import ERROR, GIB, WARNING, CheckResult, Fix, passed, unknown

if TYPE_CHECKING:
    from agent.host.doctor.model import Readings, Subject

_LOW_PART: Final = 0.1


def disk_space(readings: Readings, subject: Subject) -> CheckResult | None:
    """Judge whether there is room, as the file system counts it: what is purgeable is not free yet."""
    try:
        measured = json.loads(readings["space"].out)
        free, total, purgeable = (int(measured[key] or 0) for key in ("free", "total", "purgeable"))
    except (ValueError, KeyError, TypeError):
        return unknown("the disk cannot be measured")
    evidence = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if purgeable:
        evidence += f", {purgeable / GIB:.1f} GiB purgeable"
    remedy = "remove what is no image of Hearth's, or set images.budget_mib; `hearth image list` shows what takes room"
    if free < subject.disk_reserve_bytes:
        return CheckResult(ERROR, "the disk is fuller than host.disk_reserve_mib allows", evidence, remedy)
    if free < total * _LOW_PART:
        return CheckResult(WARNING, "less than a tenth of the disk is free", evidence, remedy)
    return passed("there is room", evidence)


def file_system(readings: Readings, _: Subject) -> CheckResult | None:
    """Judge whether clones are free, and the disk well."""
    found = readings["diskutil"].plist()
    kind = str(found.get("FilesystemType", "")).lower()
    if not kind:
        return unknown(f"diskutil tells nothing of the volume: {readings['diskutil'].text[:100]}")
    evidence = f"{found.get('VolumeName', '')} {kind}, SMART {found.get('SMARTStatus', 'unknown')}"
    if found.get("SMARTStatus") == "Failing":
        return CheckResult(ERROR, "the disk says that it is failing", evidence, "drain this host and replace the disk")
    if kind != "apfs":
        remedy = "put data_dir, and TART_HOME, on an APFS volume"
        return CheckResult(ERROR, f"{kind} cannot clone files: each VM would be a whole copy", evidence, remedy)
    return passed("clones take no room until they are written to", evidence)


def spotlight(readings: Readings, subject: Subject) -> CheckResult | None:
    """Judge whether Spotlight reads every clone."""
    text = readings["spotlight"].text
    if "Indexing enabled" not in text:
        return (
            passed("Spotlight leaves the volume alone")
            if "disabled" in text
            else unknown(f"mdutil says {text[:100]!r}")
        )
    volume = volume_of(str(subject.vm_dirs[0]))
    fix = Fix((("/usr/bin/mdutil", "-i", "off", volume),))
    return CheckResult(WARNING, "Spotlight reads the VMs' volume", text[-200:], "turn its indexing off", fix)


def time_machine(readings: Readings, subject: Subject) -> CheckResult | None:
    """Judge whether Time Machine keeps what was deleted, or copies every VM."""
    snapshots = readings["snapshots"].out.count("com.apple.TimeMachine")
    if snapshots:
        message = f"{snapshots} local snapshots keep the space of deleted images and VMs"
        remedy = "turn Time Machine off, and run `tmutil deletelocalsnapshots /`"
        return CheckResult(WARNING, message, readings["snapshots"].out.strip()[-120:], remedy)
    if "No destinations configured" in readings["backups"].text:
        return passed("Time Machine is not set up")
    included = [line.split(maxsplit=1)[1] for line in readings["excluded"].out.splitlines() if "[Included]" in line]
    if not included:
        return passed("Time Machine leaves the VMs out")
    fix = Fix((("/usr/bin/tmutil", "addexclusion", "-p", *map(str, subject.vm_dirs)),))
    return CheckResult(WARNING, "Time Machine copies the VMs", ", ".join(included), "leave them out", fix)


def volume_of(path: str) -> str:
    """Return the volume that holds a path of a Mac: one under /Volumes, else the one of all users' data."""
    parts = path.split("/")
    return f"/Volumes/{parts[2]}" if parts[1:2] == ["Volumes"] and len(parts) > 2 else "/System/Volumes/Data"
