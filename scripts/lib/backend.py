"""Backends of a host under test: what its VMs run on, observed without the agent."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.lib.host import Host

REPOSITORY: Final = Path(__file__).resolve().parents[2]


class Backend(Protocol):
    """One kind of hypervisor, real or simulated, for one host."""

    config: str
    """TOML tables for the configuration file. Complete after `make_images`."""

    async def make_images(self, host: Host, versions: tuple[str, ...]) -> dict[str, str]:
        """Push an image of each version and return their references. A guest serves its version on port 8080."""

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Return the processes of every VM of this host by VM name, known to the agent or not."""

    def hang(self, name: str) -> None:
        """Make a VM stop answering. Its process does not end."""

    def delete_files(self, name: str) -> None:
        """Remove the files of a VM without the agent."""

    def list_vms_with_files(self) -> frozenset[str]:
        """Return the names of VMs that have files, known to the agent or not."""

    def list_leftovers(self) -> list[str]:
        """Return what VMs left behind, except the processes of `processes`: mostly files."""

    async def close(self) -> None:
        """Kill every VM that still runs, and stop the servers started for them."""


class QemuBackend:
    """Real QEMU VMs below a data directory, from images in an OCI layout next to it."""

    config = ""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._data_dir = directory / "data"

    async def make_images(self, host: Host, versions: tuple[str, ...]) -> dict[str, str]:
        """See `Backend`. Builds the guests from Debian packages."""
        host.configure()
        references = {}
        for version in versions:
            disk = self._directory / f"small-{version}.img"
            command = [str(REPOSITORY / "scripts" / "demo-image"), "small", "--version", version, str(disk)]
            subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: ASYNC221 - nothing else runs yet
            references[version] = f"oci-layout:{self._directory}/registry:{version}"
            await host.run_hearth("image", "push", str(disk), references[version], "--memory", "256", "--cpus", "1")
            disk.unlink()
        return references

    def processes(self) -> dict[str, list[psutil.Process]]:
        """See `Backend`."""
        found: dict[str, list[psutil.Process]] = {}
        for process, command in running_commands():
            if "qemu-system" in command[0] and "-name" in command and str(self._data_dir) in " ".join(command):
                found.setdefault(command[command.index("-name") + 1], []).append(process)
        return found

    def hang(self, name: str) -> None:
        """See `Backend`."""
        (process,) = self.processes()[name]
        process.send_signal(signal.SIGSTOP)

    def delete_files(self, name: str) -> None:
        """See `Backend`."""
        shutil.rmtree(self._data_dir / "vms" / name, ignore_errors=True)

    def list_vms_with_files(self) -> frozenset[str]:
        """See `Backend`."""
        return list_names(self._data_dir / "vms")

    def list_leftovers(self) -> list[str]:
        """See `Backend`."""
        return list_paths(self._data_dir / "vms")

    async def close(self) -> None:
        """See `Backend`."""
        for process in [one for several in self.processes().values() for one in several]:
            process.kill()
            process.wait(10)


def list_names(folder: Path) -> frozenset[str]:
    """Return the names of a folder's entries, without the suffix `.partial`; empty when there is no folder."""
    try:
        return frozenset(entry.removesuffix(".partial") for entry in os.listdir(folder))
    except FileNotFoundError:
        return frozenset()


def list_paths(*folders: Path) -> list[str]:
    """Return every path below these folders."""
    return [str(path) for folder in folders if folder.exists() for path in folder.rglob("*")]


def running_commands() -> Iterator[tuple[psutil.Process, list[str]]]:
    """Yield every process of this machine with its command line."""
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue
        if command:
            yield process, command
