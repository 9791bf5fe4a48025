"""A Tart home: where things lie, what is locked, and what state a VM is in. Tart's layout and locks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import struct
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.simulators.tartsim.errors import SwiftError, missing

if TYPE_CHECKING:
    from collections.abc import Iterator

REMOTE = re.compile(
    r"(?P<host>[\w.-]+(?::\d+)?)/(?P<ns>[a-zA-Z0-9]+(?:[._/-][a-zA-Z0-9]+)*)"
    r"(?::(?P<tag>[a-zA-Z0-9]+(?:[._-][a-zA-Z0-9]+)*)|@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True)
class VmDir:
    """A directory that may be a VM, or an image, which is the same to Tart."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config_path(self) -> Path:
        return self.path / "config.json"

    @property
    def state_path(self) -> Path:
        return self.path / "state.vzvmsave"

    @property
    def socket_path(self) -> Path:
        return self.path / "control.sock"

    @property
    def valid(self) -> bool:
        """Whether Tart regards it as a VM: its files exist, with any content (T12)."""
        return all((self.path / name).exists() for name in ("config.json", "disk.img", "nvram.bin"))

    @property
    def lock_holder(self) -> int:
        """The process with the lock on `config.json`, or 0 (T9). A file that is not writable reads as not running."""
        try:
            with self.config_path.open("r+b") as file:
                return _lock_holder(file.fileno())
        except OSError:
            return 0

    @property
    def state(self) -> str:
        if self.lock_holder:
            return "running"
        return "suspended" if self.state_path.exists() else "stopped"

    def config(self) -> dict[str, Any]:
        """Read `config.json`. A damaged one is a decoding error of every command that reads it (T11)."""
        try:
            document: dict[str, Any] = json.loads(self.config_path.read_bytes())
        except ValueError as error:
            raise SwiftError(f"The data couldn't be read because it isn't in the correct format. {error}") from error
        needed = {"version", "cpuCount", "memorySize", "macAddress"}
        needed |= {"ecid", "hardwareModel"} if document.get("os", "darwin") == "darwin" else set()
        if lacking := sorted(needed - document.keys()):
            raise SwiftError(f"The data couldn't be read because it is missing: {', '.join(lacking)}")
        return document

    def write_config(self, config: dict[str, Any]) -> None:
        """Rewrite `config.json` in place, as Tart does."""
        self.config_path.write_text(json.dumps(config, indent=2).replace("/", r"\/"))


class Home:
    """`$TART_HOME`, made if absent."""

    def __init__(self) -> None:
        self.root = Path(os.environ.get("TART_HOME") or Path.home() / ".tart")
        self.vms = self.root / "vms"
        self.images = self.root / "cache" / "OCIs"
        self.tmp = self.root / "tmp"
        self.simulator = self.root / ".simulator"
        for folder in (self.vms, self.images, self.root / "cache" / "IPSWs", self.tmp, self.simulator):
            folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def leases(self) -> Path:
        """The Mac's /var/db/dhcpd_leases: a file per MAC address with its IP address."""
        folder = self.simulator / "leases"
        folder.mkdir(exist_ok=True)
        return folder

    def local(self) -> list[VmDir]:
        """All local VMs that Tart lists: those with all their files (T12)."""
        return [vm for path in sorted(self.vms.iterdir()) if (vm := VmDir(path)).valid]

    def open(self, name: str) -> VmDir:
        """Open a local VM. That sets its access time (T13)."""
        vm = VmDir(self.vms / name)
        if not vm.valid:
            raise missing(name)
        touch_access(vm.path)
        return vm

    def entries(self) -> Iterator[tuple[str, VmDir]]:
        """All cached images by name: each digest, and each tag."""
        for path in sorted(self.images.rglob("*")):
            entry = VmDir(path)
            if path.is_dir() and entry.valid:
                mark = "@" if path.name.startswith("sha256:") else ":"
                yield f"{unescaped(self.images, path.parent)}{mark}{path.name}", entry

    def image(self, match: re.Match[str]) -> VmDir | None:
        """The cached image of a name, without a request to the registry (T5)."""
        folder = self.images / match["host"].replace(":", "%3A") / match["ns"]
        entry = VmDir(folder / (match["digest"] or match["tag"] or "latest"))
        return VmDir(Path(os.path.realpath(entry.path))) if entry.valid else None

    def collect_garbage(self) -> None:
        """Delete the unlocked entries of `tmp`, as every command except clone and pull does first (T14)."""
        for path in self.tmp.iterdir():
            with contextlib.suppress(OSError), held(path, blocking=False):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def unescaped(images: Path, folder: Path) -> str:
    """Return host and namespace of a folder of the cache."""
    host, *namespace = folder.relative_to(images).parts
    return "/".join([host.replace("%3A", ":"), *namespace])


def touch_access(path: Path) -> None:
    """Set the access time to now, and the modification time to the old access time, as Tart does (T13)."""
    before = path.stat().st_atime
    os.utime(path, (max(before, time.time()), before))


@contextlib.contextmanager
def held(path: Path, *, blocking: bool = True) -> Iterator[int]:
    """Hold the flock on a file or directory. Raises `OSError` if another process holds it and `blocking` is false."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
        yield descriptor
    finally:
        os.close(descriptor)


def _lock_holder(descriptor: int) -> int:
    linux = sys.platform == "linux"
    layout = "hhqqi4x" if linux else "qqihh"
    request = (fcntl.F_RDLCK, 0, 0, 0, 0) if linux else (0, 0, 0, fcntl.F_RDLCK, 0)
    answer = struct.unpack(layout, fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(layout, *request)))
    return int(answer[4] if linux else answer[2]) if answer[0 if linux else 3] != fcntl.F_UNLCK else 0
