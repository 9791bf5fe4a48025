"""Evidence of failed VMs: files that explain each failure, one folder per VM, within a space limit.

The driver collects what only it can read (console, screen, tool output); `summary.json` adds the failure, the last
probe results and the VM's events. The oldest evidence is deleted first."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from agent.domain import names
from agent.domain.errors import ErrorOrigin, HearthError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from agent.domain.events import Event
    from agent.domain.health import ProbeResult
    from agent.domain.model import Vm

SUMMARY: Final = "summary.json"


class EvidenceUnknownError(HearthError):
    """No such evidence is stored: the VM did not fail, or its evidence was deleted to free space."""

    code = "evidence-not-found"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


@dataclass(frozen=True, slots=True)
class EvidenceFile:
    """One file of a VM's evidence."""

    name: str
    size_bytes: int
    modified_at_s: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """The folder that holds the evidence of every VM. `budget_bytes` is for all of them, `vm_bytes` for each.

    `events` and `probes` return the events and the last probe results of a VM.
    """

    root: Path
    budget_bytes: int
    vm_bytes: int
    events: Callable[[str], Awaitable[tuple[Event, ...]]]
    probes: Callable[[str], tuple[ProbeResult, ...]]

    async def keep(self, vm: Vm, collect: Callable[[Path], Awaitable[None]]) -> None:
        """Store the evidence of a failed VM; `collect` writes the driver's part into a folder.

        The summary is stored even if the driver fails; its error is raised afterwards. Raises `HearthError`, `OSError`.
        """
        into, error = self.root / vm.name, ""
        try:
            await collect(into)
        except HearthError as failed:
            error = str(failed)
            raise
        finally:
            summary: dict[str, object] = {
                "vm": asdict(vm),
                "failure": asdict(vm.failure) if vm.failure else None,
                "probes": [asdict(result) for result in self.probes(vm.name)],
                "events": [asdict(event) for event in await self.events(vm.name)],
                "error": error,
            }
            await asyncio.to_thread(self._finish, into, summary)

    async def files(self, vm: str) -> tuple[EvidenceFile, ...]:
        """Return the stored files of a VM, by name. Raises `EvidenceUnknownError` if there are none."""
        found = await asyncio.to_thread(_files, self.root / vm) if names.parse(vm) else ()
        if not found:
            raise EvidenceUnknownError(
                f"no evidence of {vm} is stored: only failed VMs have some, and the oldest is deleted first",
                remedy="list the VM's events with `hearth vms why NAME`",
            )
        return found

    async def path(self, vm: str, name: str) -> Path:
        """Return the path of one file of a VM, never outside its folder. Raises `EvidenceUnknownError`."""
        if name not in {file.name for file in await self.files(vm)}:
            raise EvidenceUnknownError(f"the evidence of {vm} has no file {name!r}", remedy="list its files first")
        return self.root / vm / name

    async def trim(self) -> None:
        """Delete the oldest evidence beyond the limit. Raises `OSError`."""
        await asyncio.to_thread(self._trim)

    def _finish(self, into: Path, summary: dict[str, object]) -> None:
        into.mkdir(parents=True, exist_ok=True)
        dropped = _shrink(into, self.vm_bytes)
        text = json.dumps({**summary, "dropped": dropped}, indent=2, default=str)
        into.joinpath(SUMMARY).write_text(text, encoding="utf-8")
        self._trim()

    def _trim(self) -> None:
        if not self.root.is_dir():
            return
        folders = [folder for folder in self.root.iterdir() if folder.is_dir() and names.parse(folder.name)]
        folders.sort(key=lambda folder: folder.stat().st_mtime)
        sizes = {folder: sum(file.size_bytes for file in _files(folder)) for folder in folders}
        total = sum(sizes.values())
        for folder in folders:
            if total <= self.budget_bytes:
                return
            shutil.rmtree(folder)
            total -= sizes[folder]


def _files(folder: Path) -> tuple[EvidenceFile, ...]:
    """Return the regular files in a folder, without links and subfolders."""
    try:
        entries = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return ()
    found = [(entry, entry.lstat()) for entry in entries if entry.is_file() and not entry.is_symlink()]
    return tuple(EvidenceFile(entry.name, stat.st_size, stat.st_mtime) for entry, stat in found)


def _shrink(folder: Path, limit_bytes: int) -> list[str]:
    """Delete the largest files until the rest is within the limit; return their names."""
    files = sorted(_files(folder), key=lambda file: file.size_bytes)
    dropped = []
    while sum(file.size_bytes for file in files) > limit_bytes:
        largest = files.pop()
        folder.joinpath(largest.name).unlink()
        dropped.append(largest.name)
    return dropped
