"""The store of templates: memory and disk of proven VMs, each in a folder `<data_dir>/templates/<template>/`.

A template is made elsewhere and renamed into the store when whole, and renamed away before it is removed: what has a
name here without the suffix `.partial` is whole. Everything blocks: call it in a thread. Raises `OSError` and
`HypervisorError`.
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
from agent.hypervisors.qemu.cmdline import Launch, command_line

if TYPE_CHECKING:
    from agent.hypervisors.qemu.toolchain import Toolchain

RECORD: Final = "template.json"
FORMAT: Final = 2
"""Of a template's files: what another agent saved in another one is not used."""
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,199}")


@dataclass(frozen=True, slots=True)
class Record:
    """What a template fits: VMs of one image on one kind of machine."""

    machine: str
    image: str  # path of the disk that the template's lies on

    @property
    def image_stands(self) -> bool:
        """Whether the disk below the template's is still there."""
        return Path(self.image).exists()


def machine_id(tools: Toolchain) -> str:
    """Return what the memory of a VM depends on, but for its size: this QEMU, this kernel and all the VM's hardware."""
    nobody = VmSpec("", VmSize(cpus=1, memory_mib=1), ())
    hardware = command_line(Launch(tools.emulator, tools.machine, tools.accelerator, nobody, Path(), None, 0, 0, 0))
    text = json.dumps([tools.version, platform.release(), hardware])
    return f"{tools.version}-{tools.accelerator}-{FORMAT}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Loan:
    """The files of one template, for one new VM."""

    folder: Path

    def hand_out(self, into: Path) -> None:
        """Link them into the VM's folder with a disk of its own, and mark it as a twin."""
        for file, name in ((layout.MEMORY, layout.MEMORY), (layout.RAM, layout.RAM), (layout.DISK, layout.BASE)):
            os.link(self.folder / file, into / name)
        shutil.copyfile(self.folder / layout.OVERLAY, into / layout.DISK)
        if (self.folder / layout.NVRAM).exists():
            shutil.copyfile(self.folder / layout.NVRAM, into / layout.NVRAM)
        (into / layout.TWIN).touch()


class Templates:
    """The templates in one folder, which must be on the file system of the VMs: files are shared by hard links."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self, machine: str) -> frozenset[str]:
        """Return the whole templates that fit this machine."""
        return frozenset(
            name
            for name in self._entries()
            if (record := self._record(name)) and record.machine == machine and record.image_stands
        )

    def sweep(self, machine: str) -> None:
        """Remove what was not removed to its end, and what no VM of this host can use any more."""
        usable = self.names(machine)
        for name in self._entries():
            if name not in usable:
                self._remove(name)

    def check(self, template: str) -> None:
        """Raise `HypervisorError` when a template cannot be called that."""
        self._path(template)

    def publish(self, draft: Path, template: str, record: Record) -> None:
        """Make a draft last, then valid under its name. A template of that name is replaced."""
        (draft / RECORD).write_text(json.dumps(asdict(record)))
        for path in (*draft.iterdir(), draft):
            _sync(path)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.drop(template)
        os.rename(draft, self._path(template))
        _sync(self._folder)

    def lend(self, template: str, record: Record) -> Loan:
        """Offer a template's files to a new VM. Raises `HypervisorError` unless it fits them exactly."""
        path = self._path(template)
        own = self._record(template)
        if own is None:
            raise HypervisorError(f"there is no template named {template}")
        if own != record:
            raise HypervisorError(f"the template {template} is of another image or machine: {own}, not {record}")
        return Loan(path)

    def drop(self, template: str) -> None:
        """Remove a template, if there is one. What was lent stays with the VMs."""
        doomed = self._folder / f"{template}{layout.PARTIAL}"
        if doomed.exists():
            self._remove(doomed.name)
        if self._path(template).exists():
            os.rename(self._path(template), doomed)
            self._remove(doomed.name)

    def _path(self, template: str) -> Path:
        if not _NAME.fullmatch(template) or template.endswith(layout.PARTIAL):
            raise HypervisorError(f"{template!r} cannot be the name of a template")
        return self._folder / template

    def _entries(self) -> tuple[str, ...]:
        try:
            return tuple(os.listdir(self._folder))
        except FileNotFoundError:
            return ()

    def _record(self, template: str) -> Record | None:
        if template.endswith(layout.PARTIAL):
            return None
        try:
            return Record(**json.loads((self._folder / template / RECORD).read_bytes()))
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
            return None  # a later agent's, or nobody's

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
