"""Simulated Tart for a host under test: the agent pulls images in Tart's format from a registry in this process."""

from __future__ import annotations

import contextlib
import shutil
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import psutil

from scripts.lib.backend import list_names, list_paths
from tests.images.faulty_registry import FaultyRegistry, run_faulty
from tests.images.tartlike import write_tart_layout
from tests.support.tart import MACOS, SIMULATOR, TartHome, guest_disk

if TYPE_CHECKING:
    from pathlib import Path

    from scripts.lib.host import Host

CHUNK_BYTES: Final = 1 << 20


class TartBackend:
    """A simulated Mac with Tart and two slots. See `Backend`."""

    def __init__(self, directory: Path, *, home: Path | None = None, **tart: str | float) -> None:
        """`home` is the Tart home, by default below `directory`; `tart` holds more keys of `[hypervisor.tart]`."""
        self._directory = directory
        self._tart = tart
        self.home = TartHome(home or directory / "tart")
        self.registry = FaultyRegistry()
        self._stack = AsyncExitStack()
        self.config = ""

    async def open(self) -> None:
        """Start the registry."""
        self._directory.mkdir(parents=True, exist_ok=True)
        await self._stack.enter_async_context(run_faulty(self.registry))
        keys = {"program": str(SIMULATOR), "home": str(self.home.root), **self._tart}
        values = "\n".join(f"{key} = {_toml(value)}" for key, value in keys.items())
        self.config = (
            f'[hypervisor]\nkind = "tart"\n[hypervisor.tart]\n{values}\n'
            f'[images.registries."{self.registry.host}"]\ninsecure = true\n'
        )

    def add_image(self, version: str, **guest: object) -> tuple[str, str]:
        """Push a guest to the registry; return its reference and digest."""
        disk = self._directory / "disk.img"
        disk.write_bytes(guest_disk(version, **guest))
        layout = self._directory / f"layout-{version}"
        digest = write_tart_layout(layout, disk, tag=version, chunk_bytes=CHUNK_BYTES, vm_config=MACOS)
        self.registry.load(layout)
        return self.registry.reference(version), digest

    async def make_images(self, host: Host, versions: tuple[str, ...]) -> dict[str, str]:
        """See `Backend`."""
        await self.open()
        host.configure(self.config)
        return {version: self.add_image(version)[0] for version in versions}

    def set_faults(self, **switches: object) -> None:
        """Set the faults of `tart`; see `tests.simulators.tartsim.faults`."""
        self.home.set_faults(**switches)

    def clear_faults(self) -> None:
        """Remove all faults of `tart` and free leaked slots."""
        self.home.set_faults()
        for process in self.home.leaked():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def processes(self) -> dict[str, list[psutil.Process]]:
        """See `Backend`."""
        found: dict[str, list[psutil.Process]] = {}
        for process in self.home.runs():
            with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                found.setdefault(process.cmdline()[-1], []).append(process)
        return found

    def hang(self, name: str) -> None:
        """See `Backend`."""
        (guest,) = self.home.guests(name)
        guest.suspend()

    def delete_files(self, name: str) -> None:
        """See `Backend`. Removes Tart's files and the agent's record of the VM."""
        for folder in (self.home.root / "vms" / name, self._directory / "data" / "vms" / name):
            shutil.rmtree(folder, ignore_errors=True)

    def list_vms_with_files(self) -> frozenset[str]:
        """See `Backend`. Reads the agent's records."""
        return list_names(self._directory / "data" / "vms")

    def list_leftovers(self) -> list[str]:
        """See `Backend`."""
        home = self.home.root
        guests = [f"process {guest.pid}" for guest in self.home.guests()]
        return guests + list_paths(home / "vms", home / "tmp", self._directory / "data" / "vms")

    async def close(self) -> None:
        """See `Backend`."""
        self.home.clean_up()
        await self._stack.aclose()


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool | int | float) else f'"{value}"'
