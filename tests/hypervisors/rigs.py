"""Rigs: each makes drivers for one host, and changes its VMs without the driver's knowledge."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import psutil

from agent.config import QemuConfig, TartConfig
from agent.domain.model import LocalImage, VmSize
from agent.domain.names import vm_name
from agent.hypervisors.contract import VmSpec
from agent.hypervisors.qemu import QemuHypervisor, layout
from agent.hypervisors.simulated import Behaviour, SimulatedHost, SimulatedHypervisor, constant
from agent.hypervisors.tart.driver import TartHypervisor
from tests.support.tart import SIMULATOR, TartHome

if TYPE_CHECKING:
    from pathlib import Path

    from agent.hypervisors.contract import Hypervisor

GUEST_PORT = 8080
REAL_MAC = os.environ.get("HEARTH_REAL_MAC") == "1"
SIZE = VmSize(cpus=4, memory_mib=8192) if REAL_MAC else VmSize(cpus=1, memory_mib=256)
"""The size of the tests' VMs. macOS does not boot with less."""
LONG = "a-data-directory-whose-name-alone-is-longer-than-a-socket-address-may-be" * 2


def spec(number: int = 1) -> VmSpec:
    """Return the spec of VM `number` of the pool `small`."""
    return VmSpec(vm_name("small", f"{number:026d}"), SIZE, (22, GUEST_PORT))


class Rig(Protocol):
    """One host."""

    image: LocalImage
    slots: int  # how many VMs may run at once
    reports_exit_codes: bool  # VMs are children of the agent, which gets their exit codes
    console: str  # the file of the evidence with the output of the VM or its hypervisor

    def driver(self) -> Hypervisor:
        """Return a new driver of the host, as after a restart of the agent."""

    def traces(self, name: str) -> list[str]:
        """Return the processes and files of a VM."""

    def kill(self, name: str) -> None:
        """SIGKILL the VM's process."""

    def hang(self, name: str) -> None:
        """Stop the VM's answers while its process runs on."""

    def plant_foreign(self, name: str) -> None:
        """Add a VM that no agent made."""

    def make_incomplete(self, name: str) -> None:
        """Add the files that an interrupted clone leaves."""

    def corrupt_snapshot(self, name: str) -> None:
        """Make the snapshot of this suspended VM unreadable."""

    def clean_up(self) -> None:
        """End every VM that still runs."""


@dataclass
class QemuRig:
    """Real VMs from a real guest disk, in directories with long names."""

    folder: Path
    image: LocalImage
    slots: int = 3
    reports_exit_codes: bool = True
    console: str = "console.log"

    @property
    def vms(self) -> Path:
        return self.folder / LONG / "vms"

    @property
    def templates(self) -> Path:
        return self.folder / LONG / "templates"

    def driver(self) -> QemuHypervisor:
        # Emulation on every host, so that guests behave the same everywhere.
        config = QemuConfig(accelerator="tcg")
        return QemuHypervisor(config, vms_dir=self.vms, templates_dir=self.templates, state_dir=self.folder / "state")

    def processes(self, name: str) -> list[psutil.Process]:
        """All processes, also of other programs, that name the VM's directory."""
        marker = f"{self.vms / name}/"
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if any(marker in argument for argument in process.info["cmdline"] or ())
        ]

    def traces(self, name: str) -> list[str]:
        files = [str(path) for path in self.vms.glob(f"*{name}*")]
        return files + [str(process) for process in self.processes(name)]

    def kill(self, name: str) -> None:
        self._signal(name, signal.SIGKILL)

    def hang(self, name: str) -> None:
        self._signal(name, signal.SIGSTOP)

    def plant_foreign(self, name: str) -> None:
        folder = self.vms / name
        folder.mkdir(parents=True)
        folder.joinpath("disk").write_text("precious")

    def make_incomplete(self, name: str) -> None:
        (self.vms / f"{name}.partial").mkdir(parents=True)

    def corrupt_snapshot(self, name: str) -> None:
        snapshot = self.vms / name / layout.SNAPSHOT
        snapshot.unlink()  # the file may be linked to other VMs
        snapshot.write_bytes(b"not a snapshot.." * 100)

    def clean_up(self) -> None:
        for process in psutil.process_iter(["cmdline"]):
            if any(str(self.vms) in argument for argument in process.info["cmdline"] or ()):
                process.kill()

    def _signal(self, name: str, number: signal.Signals) -> None:
        (process,) = self.processes(name)
        os.kill(process.pid, number)


@dataclass
class SimulatedRig:
    """A simulated host whose guests serve their ports."""

    image: LocalImage
    slots: int = 3
    reports_exit_codes: bool = True
    console: str = "console.log"
    host: SimulatedHost = field(
        default_factory=lambda: SimulatedHost(behaviour=Behaviour(boot_s=constant(0.1)), serve=True)
    )

    def driver(self) -> SimulatedHypervisor:
        return SimulatedHypervisor(self.host)

    def traces(self, name: str) -> list[str]:
        return [name] if name in self.host.vms else []

    def kill(self, name: str) -> None:
        self.host.crash(name)

    def hang(self, name: str) -> None:
        self.host.hang(name)

    def plant_foreign(self, name: str) -> None:
        self.host.foreign[name] = False

    def make_incomplete(self, name: str) -> None:
        self.host.add(spec_of(name), self.image.digest)

    def corrupt_snapshot(self, name: str) -> None:
        vm = self.host.vms[name]
        vm.behaviour = replace(vm.behaviour, resume_fails=1)

    def clean_up(self) -> None:
        for name in tuple(self.host.vms):
            self.host.vanish(name)


@dataclass
class TartRig:
    """Tart with images in its cache. Simulated, unless HEARTH_REAL_MAC=1 permits the use of the one on PATH."""

    home: TartHome
    image: LocalImage
    records: Path
    program: str = str(SIMULATOR)
    slots: int = 2
    reports_exit_codes: bool = True
    console: str = "tart.log"

    def driver(self) -> TartHypervisor:
        config = TartConfig(program=self.program, home=self.home.root)
        return TartHypervisor(config, records_dir=self.records)

    def traces(self, name: str) -> list[str]:
        files = [*self.home.root.glob(f"vms/*{name}*"), *self.records.glob(f"*{name}*")]
        return [*map(str, files), *map(str, self.home.runs(name))]

    def kill(self, name: str) -> None:
        (process,) = self.home.runs(name)
        process.kill()

    def hang(self, name: str) -> None:
        (process,) = self.home.guests(name) or self.home.runs(name)
        process.suspend()

    def plant_foreign(self, name: str) -> None:
        folder = self.home.root / "vms" / name
        folder.mkdir(parents=True)
        for file in ("config.json", "disk.img", "nvram.bin"):
            folder.joinpath(file).write_text("precious")

    def make_incomplete(self, name: str) -> None:
        folder = self.home.root / "vms" / name
        folder.mkdir(parents=True)
        folder.joinpath("config.json").write_text("{}")
        (self.records / name).mkdir(parents=True)  # the driver makes it before the clone

    def corrupt_snapshot(self, name: str) -> None:
        (self.home.root / "vms" / name / "state.vzvmsave").write_bytes(b"not a snapshot")

    def clean_up(self) -> None:
        self.home.clean_up()


def spec_of(name: str) -> VmSpec:
    """Return the tests' usual spec with this name."""
    return VmSpec(name, spec().size, spec().ports)


def local_image(disk: Path, *, arch: str = "amd64", system: str = "linux", nvram: Path | None = None) -> LocalImage:
    """Return a guest disk as an image of the store."""
    return LocalImage(digest=f"sha256:{disk.name}", directory=disk.parent, disk=disk, nvram=nvram, os=system, arch=arch)
