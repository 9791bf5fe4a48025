"""The store of templates: snapshot and disk of a ready VM, each in a folder `<data_dir>/templates/<template>/`.

A template is made elsewhere and renamed into the store when it is complete, and renamed again before it is removed. So
a name without the suffix `.partial` is a complete template. Every method blocks: call it in a thread. Methods raise
`OSError` and `HypervisorError`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.domain.model import VmSize
from agent.hypervisors.contract import HypervisorError, VmSpec
from agent.hypervisors.qemu import layout
from agent.hypervisors.qemu.cmdline import LaunchOptions, command_line

if TYPE_CHECKING:
    from agent.hypervisors.qemu.toolchain import Toolchain

RECORD: Final = "template.json"
FORMAT: Final = 3
"""Version of a template's files. Templates of another version are not used."""
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,199}")


@dataclass(frozen=True, slots=True)
class TemplateRecord:
    """The VMs that a template fits: those of one image on one kind of machine."""

    machine: str
    image: str  # path of the image's disk, the backing file of the template's disk

    @property
    def image_exists(self) -> bool:
        """Whether the image's disk still exists."""
        return Path(self.image).exists()


def machine_id(tools: Toolchain) -> str:
    """Return an id of everything but the size that a snapshot depends on: QEMU, kernel, and the VM's hardware."""
    spec = VmSpec("", VmSize(cpus=1, memory_mib=1), ())
    hardware = command_line(
        LaunchOptions(tools.emulator, tools.machine, tools.accelerator, spec, Path(), None, 0, 0, 0)
    )
    text = json.dumps([tools.version, platform.release(), hardware])
    return f"{tools.version}-{tools.accelerator}-{FORMAT}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class TemplateFiles:
    """The files of one template, to be linked into a new VM."""

    folder: Path

    def link_into(self, directory: Path) -> None:
        """Link them into a VM's directory with a disk of its own, and mark its identity as pending."""
        for file, name in ((layout.SNAPSHOT, layout.SNAPSHOT), (layout.RAM, layout.RAM), (layout.DISK, layout.BASE)):
            os.link(self.folder / file, directory / name)
        shutil.copyfile(self.folder / layout.OVERLAY, directory / layout.DISK)
        if (self.folder / layout.NVRAM).exists():
            shutil.copyfile(self.folder / layout.NVRAM, directory / layout.NVRAM)
        (directory / layout.IDENTITY_PENDING).touch()


class TemplateStore:
    """The templates in one folder, which must be on the VMs' file system: files are shared by hard links."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self, machine: str) -> frozenset[str]:
        """Return the complete templates that fit this machine."""
        return frozenset(
            name
            for name in self._entries()
            if (record := self._record(name)) and record.machine == machine and record.image_exists
        )

    def remove_unusable(self, machine: str) -> None:
        """Remove the rest of interrupted removals, and templates that no VM of this host can use any more."""
        usable = self.names(machine)
        for name in self._entries():
            if name not in usable:
                self._remove(name)

    def check_name(self, template: str) -> None:
        """Raise `HypervisorError` if a template cannot have that name."""
        self._path(template)

    def publish(self, draft: Path, template: str, record: TemplateRecord) -> None:
        """Write a draft through to the storage, then make it valid under its name. Replaces a template of that name."""
        (draft / RECORD).write_text(json.dumps(asdict(record)))
        for path in (*draft.iterdir(), draft):
            _sync(path)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.remove(template)
        os.rename(draft, self._path(template))
        _sync(self._folder)

    def find(self, template: str, record: TemplateRecord) -> TemplateFiles:
        """Return a template's files. Raises `HypervisorError` unless its record equals `record`."""
        path = self._path(template)
        own = self._record(template)
        if own is None:
            raise HypervisorError(f"there is no template named {template}")
        if own != record:
            raise HypervisorError(f"the template {template} is of another image or machine: {own}, not {record}")
        return TemplateFiles(path)

    def remove(self, template: str) -> None:
        """Remove a template, if there is one. The files that VMs have linked stay with the VMs."""
        removed = self._folder / f"{template}{layout.PARTIAL}"
        if removed.exists():
            self._remove(removed.name)
        if self._path(template).exists():
            os.rename(self._path(template), removed)
            self._remove(removed.name)

    def _path(self, template: str) -> Path:
        if not _NAME.fullmatch(template) or template.endswith(layout.PARTIAL):
            raise HypervisorError(f"{template!r} cannot be the name of a template")
        return self._folder / template

    def _entries(self) -> tuple[str, ...]:
        try:
            return tuple(os.listdir(self._folder))
        except FileNotFoundError:
            return ()

    def _record(self, template: str) -> TemplateRecord | None:
        if template.endswith(layout.PARTIAL):
            return None
        try:
            return TemplateRecord(**json.loads((self._folder / template / RECORD).read_bytes()))
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
            return None  # written by a newer agent, or not a template

    def _remove(self, entry: str) -> None:
        path = self._folder / entry
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
