"""UEFI firmware: finds what QEMU's packages have installed, and writes the variables that a clone starts with.

Every distribution describes its firmware in JSON files in a `firmware` folder next to QEMU's own data. The format is
QEMU's docs/interop/firmware.json.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agent.hypervisors.contract import HypervisorUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.hypervisors.qemu.machine import Machine

SYSTEM_FOLDERS: Final = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))
UNWANTED_FEATURES: Final = frozenset({"requires-smm", "secure-boot", "enrolled-keys", "amd-sev-es", "intel-tdx"})
_SIGNATURE: Final = b"_FVH"
_SIGNATURE_OFFSET: Final = 40


@dataclass(frozen=True, slots=True)
class Firmware:
    """A firmware: its code, shared by all VMs, and its empty variables, copied for each VM."""

    code: Path
    variables: Path


def find_firmware(machine: Machine, binary: Path) -> tuple[Firmware, ...]:
    """Return the UEFI firmware installed for a machine, best first. Blocks: call it in a thread. Raises `OSError`."""
    folders = (*SYSTEM_FOLDERS, binary.resolve().parent.parent / "share" / "qemu" / "firmware")
    files = {path.name: path for folder in reversed(folders) for path in folder.glob("*.json")}
    texts = (files[name].read_bytes() for name in sorted(files))
    return tuple(_usable(texts, machine))


def _usable(descriptions: Iterable[bytes], machine: Machine) -> Iterable[Firmware]:
    for text in descriptions:
        try:
            firmware = parse_description(json.loads(text), machine)
        except (ValueError, KeyError, TypeError):
            continue  # a file of another program, or of a newer format
        if firmware and firmware.code.is_file() and firmware.variables.is_file():
            yield firmware


def parse_description(description: dict[str, Any], machine: Machine) -> Firmware | None:
    """Return the described firmware, None if VMs of `machine` cannot boot from it."""
    mapping = description["mapping"]
    fits = any(
        target["architecture"] == machine.qemu_arch and any(machine.type in name for name in target["machines"])
        for target in description["targets"]
    )
    split = mapping["device"] == "flash" and mapping.get("mode", "split") == "split"
    if not fits or not split or "uefi" not in description["interface-types"]:
        return None
    if UNWANTED_FEATURES & set(description["features"]):
        return None
    return Firmware(Path(mapping["executable"]["filename"]), Path(mapping["nvram-template"]["filename"]))


def choose_firmware(offered: tuple[Firmware, ...], machine: Machine, nvram: Path | None) -> Firmware | None:
    """Return the firmware that a VM boots from, None for its machine's BIOS. Blocks to read file sizes.

    Variables fit only a firmware whose own variables have the same size. Raises `HypervisorUnavailableError` if the VM
    needs UEFI and none is installed.
    """
    if nvram is None and machine.bios:
        return None
    if not offered:
        raise HypervisorUnavailableError(
            "the image boots from UEFI, but no UEFI firmware is installed", remedy=machine.firmware_remedy
        )
    return next((firmware for firmware in offered if nvram and _same_size(nvram, firmware.variables)), offered[0])


def write_variables(firmware: Firmware, nvram: Path | None, into: Path) -> None:
    """Write a clone's UEFI variables: the image's if this firmware can read them, otherwise empty ones.

    This firmware cannot read the NVRAM of another hypervisor, such as Apple's. The disk then boots from its fallback
    path, as on any new machine. Blocks: call it in a thread. Raises `OSError`.
    """
    usable = nvram is not None and _same_size(nvram, firmware.variables) and _is_firmware_volume(nvram)
    shutil.copyfile(nvram if nvram and usable else firmware.variables, into)


def _same_size(first: Path, second: Path) -> bool:
    return first.stat().st_size == second.stat().st_size


def _is_firmware_volume(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(_SIGNATURE_OFFSET)
        return file.read(len(_SIGNATURE)) == _SIGNATURE
