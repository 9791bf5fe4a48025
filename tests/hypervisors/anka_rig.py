"""Rigs for the anka driver: a simulated host, or the real tool on a Mac reserved for tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from agent.config import AnkaConfig
from agent.domain.model import LocalImage
from agent.domain.names import PREFIX
from agent.hypervisors.anka import AnkaHypervisor
from agent.hypervisors.anka.vm_records import AnkaVmRecords
from tests.simulators.anka.faults import Switches, set_faults
from tests.simulators.anka.install import install
from tests.simulators.anka.state import Home

if TYPE_CHECKING:
    from pathlib import Path

REAL = os.environ.get("HEARTH_REAL_MAC") == "1" and shutil.which("anka") is not None
TEMPLATE = os.environ.get("HEARTH_ANKA_TEMPLATE", "")
"""On a real Mac: the template to clone, as UUID:TAG, complete on that Mac."""


class AnkaRig:
    """A simulated host with one template on it."""

    reports_exit_codes = False
    slots = 2
    console = "console.log"

    def __init__(self, folder: Path, *, boot_s: float = 0.05) -> None:
        self.folder = folder
        self.home = Home(folder / "anka")
        self.binary = install(self.home.root)
        self.home.prepare()
        self.home.layer("base").write_text(json.dumps({"serves": "1.0", "boot_s": boot_s}))
        template = self.home.add("macos", version="v1", layers=["base"], tags={"v1": ["base"]})
        self.image = anka_image(folder, f"{template.uuid}:v1")
        self.config = AnkaConfig(binary=str(self.binary), logs=self.home.logs, timeout_s=20)

    def driver(self) -> AnkaHypervisor:
        return AnkaHypervisor(self.config, records_dir=self.folder / "vms")

    def faults(self, **commands: Switches) -> None:
        set_faults(self.home.root, **commands)

    def processes(self, name: str) -> list[psutil.Process]:
        """The hypervisor processes of a VM."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or ()
            if name in command and str(self.home.root) in command:
                found.append(process)
        return found

    def traces(self, name: str) -> list[str]:
        listed = [f"VM {vm.name}" for vm in self.home.all() if vm.name == name]
        files = [str(path) for path in (self.folder / "vms").glob(f"*{name}*")]
        return [*listed, *files, *map(str, self.processes(name))]

    def kill(self, name: str) -> None:
        self._signal(name, signal.SIGKILL)

    def hang(self, name: str) -> None:
        self._signal(name, signal.SIGSTOP)

    def plant_foreign(self, name: str) -> None:
        self.home.add(name, layers=["base"])

    def make_incomplete(self, name: str) -> None:
        self.home.add(name, layers=["base"], whole=False)
        AnkaVmRecords(self.folder / "vms").create(name, self.image.digest)  # the driver writes it before the clone

    def corrupt_snapshot(self, name: str) -> None:
        raise NotImplementedError(f"{name} has no snapshot")

    def clean_up(self) -> None:
        for process in psutil.process_iter(["cmdline"]):
            if str(self.home.root) in (process.info["cmdline"] or ()):
                process.kill()

    def calls(self) -> list[list[str]]:
        """Every command line with which the program was called."""
        lines = (self.home.root / "calls.log").read_text().splitlines()
        return [json.loads(line)[1:] for line in lines]

    def _signal(self, name: str, number: signal.Signals) -> None:
        (process,) = self.processes(name)
        os.kill(process.pid, number)


class RealAnkaRig:
    """A Mac with Anka, its license and a template (HEARTH_ANKA_TEMPLATE)."""

    reports_exit_codes = False
    slots = 2
    console = "console.log"

    def __init__(self, folder: Path) -> None:
        if not TEMPLATE:
            pytest.skip("HEARTH_ANKA_TEMPLATE names no template, as UUID:TAG")
        self.folder = folder
        self.image = anka_image(folder, TEMPLATE)

    def driver(self) -> AnkaHypervisor:
        return AnkaHypervisor(AnkaConfig(), records_dir=self.folder / "vms")

    def traces(self, name: str) -> list[str]:
        listed = [f"VM {vm['name']}" for vm in self._query("list") if vm["name"] == name]
        return listed + [str(path) for path in (self.folder / "vms").glob(f"*{name}*")]

    def kill(self, name: str) -> None:
        os.kill(self._pid(name), signal.SIGKILL)

    def hang(self, name: str) -> None:
        os.kill(self._pid(name), signal.SIGSTOP)

    def plant_foreign(self, name: str) -> None:
        pytest.skip(f"the rig makes no VM {name} on a real host")

    def make_incomplete(self, name: str) -> None:
        AnkaVmRecords(self.folder / "vms").create(name, self.image.digest)
        template, _, tag = TEMPLATE.partition(":")
        self._query("clone", "--tag", tag, template, name)

    def corrupt_snapshot(self, name: str) -> None:
        raise NotImplementedError(f"{name} has no snapshot")

    def clean_up(self) -> None:
        for vm in self._query("list"):
            if vm["name"].startswith(f"{PREFIX}-"):
                self._query("stop", "--force", vm["name"])
                self._query("delete", "--yes", vm["name"])

    def _pid(self, name: str) -> int:
        shown = self._query("show", name)
        if "pid" not in shown:
            pytest.skip("this release of Anka does not report the process of a VM")
        return int(shown["pid"])

    def _query(self, *arguments: str) -> Any:
        done = subprocess.run(["anka", "-j", *arguments], capture_output=True, timeout=120, check=False)
        return json.loads(done.stdout.strip().splitlines()[-1]).get("body")


def anka_image(folder: Path, known_as: str) -> LocalImage:
    """Return a template's tag as an image."""
    return LocalImage("sha256:" + "a" * 64, folder, folder, None, "darwin", "arm64", known_as=known_as)
