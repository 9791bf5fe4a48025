"""The state of a simulated Anka host on disk: VMs with their tags, layers, the license, and running VMs."""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Document = dict[str, Any]


class AnkaFailure(Exception):
    """An answer with status ERROR. `code` 3: no such VM, template or tag; 18: the name is taken."""

    def __init__(self, message: str, *, code: int = 1, exit_code: int = 1) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = exit_code


@dataclass
class Vm:
    """A VM or template. `tags` maps its tags on this host to their layers; `version` is the checked-out tag."""

    uuid: str
    name: str
    version: str = ""
    layers: list[str] = field(default_factory=list)
    tags: dict[str, list[str]] = field(default_factory=dict)
    cpu_cores: int = 4
    ram_size: int = 4 << 30
    rules: list[Document] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    failed: bool = False
    suspended: bool = False
    whole: bool = True  # its clone is complete
    creation_date: str = ""


class Home:
    """The state of one simulated host, below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.vms = root / "vm_lib"
        self.images = root / "img_lib"
        self.logs = root / "logs"

    def prepare(self) -> None:
        """Make the required folders."""
        for folder in (self.vms, self.images, self.logs):
            folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the host's state."""
        with (self.root / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def document(self, name: str, default: Any) -> Any:
        """Return the contents of a state file, or the default."""
        try:
            return json.loads((self.root / name).read_text())
        except FileNotFoundError:
            return default

    def write(self, name: str, value: Any) -> None:
        """Replace a state file atomically."""
        path = self.root / name
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        aside.write_text(json.dumps(value))
        aside.replace(path)

    def all(self) -> list[Vm]:
        """Return every VM and template."""
        found = []
        for path in sorted(self.vms.glob("*/vm.json")):
            try:
                found.append(Vm(**json.loads(path.read_text())))
            except FileNotFoundError:
                continue
        return found

    def find(self, name: str) -> Vm:
        """Return a VM by name or UUID. Raises `AnkaFailure` with code 3."""
        for vm in self.all():
            if name in (vm.name, vm.uuid):
                return vm
        raise AnkaFailure(f"{name}: not found", code=3)

    def add(self, name: str, **fields: Any) -> Vm:
        """Create a VM on disk and return it."""
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        fields.setdefault("uuid", str(uuid.uuid4()))
        vm = Vm(name=name, creation_date=created, **fields)
        (self.vms / vm.uuid).mkdir()
        self.save(vm)
        return vm

    def save(self, vm: Vm) -> None:
        """Write a VM to disk."""
        self.write(f"vm_lib/{vm.uuid}/vm.json", asdict(vm))

    def layer(self, name: str) -> Path:
        """Return the file of a layer."""
        return self.images / f"{name}.ank"

    def run_facts(self, vm: Vm) -> Document:
        """Return the facts that the VM's hypervisor process wrote, also if it has ended. Empty without a process."""
        facts: Document = self.document(f"vm_lib/{vm.uuid}/run.json", {})
        return facts

    def status(self, vm: Vm) -> str:
        """Return the VM's status. It is `failed` if its hypervisor ended without a stop (A9)."""
        facts = self.run_facts(vm)
        if is_locked(self.vms / vm.uuid / "alive"):
            return "running"
        if vm.failed or (facts and not facts.get("over")):
            return "failed"
        return "suspended" if vm.suspended else "stopped"

    def free_leaked_slots(self) -> None:
        """Free the leaked slots."""
        with self.lock():
            (self.root / "leaked.json").unlink(missing_ok=True)

    def used_slots(self) -> int:
        """Return how many VMs count against Apple's limit: running VMs and leaked slots."""
        return sum(self.status(vm) == "running" for vm in self.all()) + int(self.document("leaked.json", 0))


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock on a file: a hypervisor does while it lives, a zombie does not."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
