"""What the driver writes down of each VM, since `anka list` cannot tell it: image, whether it is fully made, process.

One small file per VM, written before `anka clone` begins and removed after `anka delete` is proven.
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
class VmRecord:
    """One VM: the digest of its image, whether its size and ports are set, and the process it was last seen to have.

    The process is for a driver that comes later, and that `anka list` may not tell of the VM any more. A host that
    was started again meanwhile has no such process: a pid alone says nothing.
    """

    image: str
    made: bool = False
    pid: int = 0
    started: int = 0

    @property
    def process(self) -> ProcessIdentity | None:
        """The process, if one was told."""
        return ProcessIdentity(self.pid, self.started) if self.pid else None


class VmRecords:
    """The records of all VMs, in one folder. All methods block shortly."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self, name: str, image: str) -> None:
        """Claim a name. Raises `VmExistsError` when it is taken."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            with self._path(name).open("x") as file:
                json.dump(asdict(VmRecord(image)), file)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            raise VmExistsError(f"a VM named {name} exists") from None

    def complete(self, name: str) -> None:
        """Note that a VM is fully made."""
        self._replace(name, replace(self.all()[name], made=True))

    def note_process(self, name: str, process: ProcessIdentity) -> None:
        """Note which process a VM has. One that has no record gets none."""
        record = self.all().get(name)
        if record is not None and record.process != process:
            self._replace(name, replace(record, pid=process.pid, started=process.started))

    def all(self) -> dict[str, VmRecord]:
        """Return every record by the name of its VM."""
        records = {}
        for path in self._folder.glob("*.json"):
            try:
                records[path.stem] = VmRecord(**json.loads(path.read_bytes()))
            except FileNotFoundError:
                continue
            except (ValueError, TypeError):
                records[path.stem] = VmRecord("")  # cut by a crash of the host: it is half made
        return records

    def remove(self, name: str) -> None:
        """Forget a VM. Forgetting an unknown one succeeds."""
        self._path(name).with_suffix(".new").unlink(missing_ok=True)
        self._path(name).unlink(missing_ok=True)

    def _replace(self, name: str, record: VmRecord) -> None:
        aside = self._path(name).with_suffix(".new")
        aside.write_text(json.dumps(asdict(record)))
        aside.replace(self._path(name))

    def _path(self, name: str) -> Path:
        if "/" in name or name.startswith("."):
            raise HypervisorError(f"{name!r} is no name of a VM")
        return self._folder / f"{name}.json"
