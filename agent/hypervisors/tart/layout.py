"""The files of VMs: those in Tart's own home, and the agent's record of each VM.

    $TART_HOME/vms/<name>/   Tart's: config.json, disk.img, nvram.bin, state.vzvmsave, control.sock
    <records>/<name>/        the agent's: vm.json once the clone is complete, tart.log with the output of `tart run`

The driver makes the record's directory before the clone and removes it after the VM. Making it claims the name:
`tart clone` would silently replace a VM of that name.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from agent.domain.names import PREFIX
from agent.hypervisors.contract import HypervisorError
from agent.hypervisors.running import is_ours

CONFIG: Final = "config.json"
DISK: Final = "disk.img"
NVRAM: Final = "nvram.bin"
SNAPSHOT: Final = "state.vzvmsave"
SOCKET: Final = "control.sock"
RECORD: Final = "vm.json"
LOG: Final = "tart.log"


@dataclass(frozen=True, slots=True)
class TartVmRecord:
    """The agent's record of a complete VM. Tart keeps neither the image nor the ports."""

    image: str
    ports: tuple[int, ...]


class TartLayout:
    """One Tart home and the records of one agent. All methods block and raise `OSError`."""

    def __init__(self, home: Path, records_dir: Path, *, prefix: str = PREFIX) -> None:
        self.home = home
        self.records = records_dir
        self.prefix = prefix

    @cached_property
    def vms(self) -> Path:
        """The folder of VMs without symlinks, as the kernel reports the working directory of a process."""
        return Path(os.path.realpath(self.home / "vms"))

    def vm(self, name: str) -> Path:
        """Directory of a VM."""
        return self.home / "vms" / name

    def record(self, name: str) -> Path:
        """Directory of a VM's record."""
        return self.records / name

    def is_ours(self, name: str) -> bool:
        """Whether an agent made the VM of that name: this one, or another one that uses the same Tart home."""
        return is_ours(name, self.prefix)

    def has_record(self, name: str) -> bool:
        """Whether this agent made the VM of that name: its record exists from before the clone until after the
        removal."""
        return self.record(name).is_dir()

    def names(self) -> set[str]:
        """Return the names of all VMs, including incomplete ones, which Tart does not list."""
        return _directories(self.home / "vms") | set(filter(self.is_ours, _directories(self.records)))

    def exists(self, name: str) -> bool:
        """Whether a VM has any files."""
        return self.vm(name).is_dir() or self.record(name).is_dir()

    def is_visible(self, name: str) -> bool:
        """Whether Tart lists it as a VM."""
        return all((self.vm(name) / file).exists() for file in (CONFIG, DISK, NVRAM))

    def damage(self, name: str, *, alive: bool) -> str:
        """Return which files a VM lacks; empty if it has all, or was never complete. An `alive` VM was complete."""
        if self.read_record(name) is None:
            return f"its record {self.record(name) / RECORD} is gone" if alive else ""
        gone = [file for file in (CONFIG, DISK, NVRAM) if not (self.vm(name) / file).exists()]
        return f"of {self.vm(name)} these are gone: {', '.join(gone)}" if gone else ""

    def is_suspended(self, name: str) -> bool:
        """Whether a VM has a snapshot."""
        return (self.vm(name) / SNAPSHOT).exists()

    def read_record(self, name: str) -> TartVmRecord | None:
        """Return the record of a VM, None while its clone is incomplete."""
        with suppress(FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            document: dict[str, Any] = json.loads((self.record(name) / RECORD).read_bytes())
            return TartVmRecord(str(document["image"]), tuple(int(port) for port in document["ports"]))
        return None

    def write_record(self, name: str, record: TartVmRecord) -> None:
        """Record that a clone is complete."""
        aside = self.record(name) / f"{RECORD}.new"
        aside.write_text(json.dumps({"image": record.image, "ports": record.ports}))
        aside.rename(self.record(name) / RECORD)

    def config(self, name: str) -> dict[str, Any]:
        """Return Tart's configuration of a VM. Raises `HypervisorError` if it is damaged."""
        path = self.vm(name) / CONFIG
        try:
            document = json.loads(path.read_bytes())
        except ValueError as error:
            raise HypervisorError(f"{path} cannot be read: {error}", remedy="delete that VM") from error
        if not isinstance(document, dict):
            raise HypervisorError(f"{path} is not a JSON object", remedy="delete that VM")
        return document

    def reference(self, image: Path) -> str:
        """Return Tart's name of a cached image: `host/namespace@sha256:…`. Tart resolves it without a request."""
        try:
            host, *namespace, digest = image.relative_to(self.home / "cache" / "OCIs").parts
        except ValueError:
            raise HypervisorError(
                f"the image in {image} is not in Tart's cache below {self.home}",
                remedy="pull it with this configuration: the agent stores images where the hypervisor reads them",
            ) from None
        return f"{host.replace('%3A', ':')}/{'/'.join(namespace)}@{digest}"


def _directories(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)}
    except FileNotFoundError:
        return set()
