"""Checks of the disk: free space, file system, Spotlight and Time Machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from agent.host.doctor.model import ERROR, GIB, WARNING, CheckResult, Fix, passed, unknown

if TYPE_CHECKING:
    from agent.host.doctor.model import Readings, Subject

_LOW_PART: Final = 0.1


def check_disk_space(readings: Readings, subject: Subject) -> CheckResult | None:
    """Check the free space. Purgeable space is not free yet."""
    try:
        measured = json.loads(readings["space"].out)
        free, total, purgeable = (int(measured[key] or 0) for key in ("free", "total", "purgeable"))
    except (ValueError, KeyError, TypeError):
        return unknown("the disk cannot be measured")
    evidence = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if purgeable:
        evidence += f", {purgeable / GIB:.1f} GiB purgeable"
    remedy = "remove files that are not images of Hearth, or set images.budget_mib; `hearth image list` shows the sizes"
    if free < subject.disk_reserve_bytes:
        return CheckResult(ERROR, "free space is below host.disk_reserve_mib", evidence, remedy)
    if free < total * _LOW_PART:
        return CheckResult(WARNING, "less than a tenth of the disk is free", evidence, remedy)
    return passed("the disk has enough free space", evidence)


def check_file_system(readings: Readings, _: Subject) -> CheckResult | None:
    """Check that the file system can clone files, and that the disk is healthy."""
    found = readings["diskutil"].plist()
    kind = str(found.get("FilesystemType", "")).lower()
    if not kind:
        return unknown(f"diskutil reports nothing about the volume: {readings['diskutil'].text[:100]}")
    evidence = f"{found.get('VolumeName', '')} {kind}, SMART {found.get('SMARTStatus', 'unknown')}"
    if found.get("SMARTStatus") == "Failing":
        return CheckResult(
            ERROR, "the disk reports that it is failing", evidence, "drain this host and replace the disk"
        )
    if kind != "apfs":
        remedy = "move data_dir and TART_HOME to an APFS volume"
        return CheckResult(
            ERROR, f"{kind} cannot clone files: each VM would be a full copy of its image", evidence, remedy
        )
    return passed("clones share their blocks until they are written", evidence)


def check_spotlight(readings: Readings, subject: Subject) -> CheckResult | None:
    """Check that Spotlight does not index the clones."""
    text = readings["spotlight"].text
    if "Indexing enabled" not in text:
        return (
            passed("Spotlight does not index the volume")
            if "disabled" in text
            else unknown(f"mdutil reports {text[:100]!r}")
        )
    volume = volume_of(str(subject.vm_dirs[0]))
    fix = Fix((("/usr/bin/mdutil", "-i", "off", volume),))
    return CheckResult(
        WARNING, "Spotlight indexes the volume of the VMs", text[-200:], "disable indexing of the volume", fix
    )


def check_time_machine(readings: Readings, subject: Subject) -> CheckResult | None:
    """Check that Time Machine neither keeps deleted VMs in snapshots nor backs up VMs."""
    snapshots = readings["snapshots"].out.count("com.apple.TimeMachine")
    if snapshots:
        message = f"{snapshots} local snapshots keep the space of deleted images and VMs"
        remedy = "disable Time Machine, and run `tmutil deletelocalsnapshots /`"
        return CheckResult(WARNING, message, readings["snapshots"].out.strip()[-120:], remedy)
    if "No destinations configured" in readings["backups"].text:
        return passed("Time Machine is not set up")
    included = [line.split(maxsplit=1)[1] for line in readings["excluded"].out.splitlines() if "[Included]" in line]
    if not included:
        return passed("Time Machine excludes the VMs")
    fix = Fix((("/usr/bin/tmutil", "addexclusion", "-p", *map(str, subject.vm_dirs)),))
    return CheckResult(
        WARNING, "Time Machine backs up the VMs", ", ".join(included), "exclude the folders of the VMs", fix
    )


def volume_of(path: str) -> str:
    """Return the volume of a path on a Mac: one under /Volumes, or the data volume."""
    parts = path.split("/")
    return f"/Volumes/{parts[2]}" if parts[1:2] == ["Volumes"] and len(parts) > 2 else "/System/Volumes/Data"
