"""The driver's records of VMs, with properties that `anka list` does not report: image, process, clone state.

One small file per VM, written before `anka clone` begins and removed after `anka delete` is verified.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from agent.hypervisors.contract import HypervisorError, VmExistsError
from agent.processes.process import ProcessIdentity

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class AnkaVmRecord:
    """One VM: the digest of its image, whether its size and ports are set, and its last observed process.

    A restarted agent uses the process to find a VM that `anka list` lost. `started` identifies
    the process: after a restart of the host, the pid may name another.
    """

    image: str
    made: bool = False
    pid: int = 0
    started: int = 0

    @property
    def process(self) -> ProcessIdentity | None:
        """The process, None if none was observed."""
        return ProcessIdentity(self.pid, self.started) if self.pid else None


class AnkaVmRecords:
    """The records of all VMs, in one folder. Every method blocks for one small file; raises `OSError`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self, name: str, image: str) -> None:
        """Claim a name. Raises `VmExistsError` if it is taken."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            with self._path(name).open("x") as file:
                json.dump(asdict(AnkaVmRecord(image)), file)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            raise VmExistsError(f"a VM named {name} exists") from None

    def complete(self, name: str) -> None:
        """Record that the clone is complete."""
        self._replace(name, replace(self.all()[name], made=True))

    def set_process(self, name: str, process: ProcessIdentity) -> None:
        """Record a VM's process, if the VM has a record."""
        record = self.all().get(name)
        if record is not None and record.process != process:
            self._replace(name, replace(record, pid=process.pid, started=process.started))

    def all(self) -> dict[str, AnkaVmRecord]:
        """Return every record by the name of its VM."""
        records = {}
        for path in self._folder.glob("*.json"):
            try:
                records[path.stem] = AnkaVmRecord(**json.loads(path.read_bytes()))
            except FileNotFoundError:
                continue
            except (ValueError, TypeError):
                records[path.stem] = AnkaVmRecord("")  # truncated by a crash of the host: the clone is incomplete
        return records

    def remove(self, name: str) -> None:
        """Remove a VM's record. Succeeds if there is none."""
        self._path(name).with_suffix(".new").unlink(missing_ok=True)
        self._path(name).unlink(missing_ok=True)

    def _replace(self, name: str, record: AnkaVmRecord) -> None:
        aside = self._path(name).with_suffix(".new")
        aside.write_text(json.dumps(asdict(record)))
        aside.replace(self._path(name))

    def _path(self, name: str) -> Path:
        if "/" in name or name.startswith("."):
            raise HypervisorError(f"{name!r} is not the name of a VM")
        return self._folder / f"{name}.json"
