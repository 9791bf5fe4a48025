"""Where things lie: Tart's own home, and what the agent keeps of each VM beside it.

    $TART_HOME/vms/<name>/   the VM, Tart's: config.json, disk.img, nvram.bin, state.vzvmsave, control.sock
    <records>/<name>/        ours: vm.json once the VM is whole, tart.log with what `tart run` said

The record's directory is made before the clone and removed after the VM: making it is what claims the name, since
`tart clone` would silently replace whatever stands under it.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from agent.domain.names import PREFIX, parse
from agent.hypervisors.contract import HypervisorError

CONFIG: Final = "config.json"
DISK: Final = "disk.img"
NVRAM: Final = "nvram.bin"
MEMORY: Final = "state.vzvmsave"
SOCKET: Final = "control.sock"
RECORD: Final = "vm.json"
LOG: Final = "tart.log"


@dataclass(frozen=True, slots=True)
class Record:
    """What the agent keeps of a whole VM: Tart forgets the image, and never knew the ports."""

    image: str
    ports: tuple[int, ...]


class Layout:
    """One Tart home and the records of one agent. All methods block and raise `OSError`."""

    def __init__(self, home: Path, records_dir: Path, *, prefix: str = PREFIX) -> None:
        self.home = home
        self.records = records_dir
        self._prefix = prefix

    @cached_property
    def vms(self) -> Path:
        """The folder of VMs by its one true path, which is how the kernel tells where a process works."""
        return Path(os.path.realpath(self.home / "vms"))

    def vm(self, name: str) -> Path:
        """Directory of a VM."""
        return self.home / "vms" / name

    def record(self, name: str) -> Path:
        """Directory of what the agent keeps of a VM."""
        return self.records / name

    def ours(self, name: str) -> bool:
        """Whether a VM of that name was made by us."""
        return parse(name, prefix=self._prefix) is not None

    def names(self) -> set[str]:
        """Return the names of all VMs: those Tart cannot see for want of a file, and those about to be cloned, too."""
        return _directories(self.home / "vms") | set(filter(self.ours, _directories(self.records)))

    def exists(self, name: str) -> bool:
        """Whether anything is there of a VM."""
        return self.vm(name).is_dir() or self.record(name).is_dir()

    def visible(self, name: str) -> bool:
        """Whether Tart takes it for a VM."""
        return all((self.vm(name) / file).exists() for file in (CONFIG, DISK, NVRAM))

    def damage(self, name: str, *, alive: bool) -> str:
        """Return which files a VM lacks; empty when it has them, or was never whole. One that is `alive` was."""
        if self.read_record(name) is None:
            return f"its record {self.record(name) / RECORD} is gone" if alive else ""
        gone = [file for file in (CONFIG, DISK, NVRAM) if not (self.vm(name) / file).exists()]
        return f"of {self.vm(name)} these are gone: {', '.join(gone)}" if gone else ""

    def suspended(self, name: str) -> bool:
        """Whether a VM has a saved memory."""
        return (self.vm(name) / MEMORY).exists()

    def read_record(self, name: str) -> Record | None:
        """Return the record of a VM, None while it is not whole."""
        with suppress(FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            document: dict[str, Any] = json.loads((self.record(name) / RECORD).read_bytes())
            return Record(str(document["image"]), tuple(int(port) for port in document["ports"]))
        return None

    def write_record(self, name: str, record: Record) -> None:
        """Write that a VM is whole."""
        aside = self.record(name) / f"{RECORD}.new"
        aside.write_text(json.dumps({"image": record.image, "ports": record.ports}))
        aside.rename(self.record(name) / RECORD)

    def config(self, name: str) -> dict[str, Any]:
        """Return Tart's configuration of a VM. Raises `HypervisorError` when it is damaged."""
        path = self.vm(name) / CONFIG
        try:
            document = json.loads(path.read_bytes())
        except ValueError as error:
            raise HypervisorError(f"{path} cannot be understood: {error}", remedy="delete that VM") from error
        if not isinstance(document, dict):
            raise HypervisorError(f"{path} holds no object", remedy="delete that VM")
        return document

    def reference(self, image: Path) -> str:
        """Return the name by which Tart knows an image of its cache: `host/namespace@sha256:…`, which asks nobody."""
        try:
            host, *namespace, digest = image.relative_to(self.home / "cache" / "OCIs").parts
        except ValueError:
            raise HypervisorError(
                f"the image in {image} is not in Tart's cache below {self.home}",
                remedy="pull it with this configuration: images are placed where the hypervisor needs them",
            ) from None
        return f"{host.replace('%3A', ':')}/{'/'.join(namespace)}@{digest}"


def _directories(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)}
    except FileNotFoundError:
        return set()
