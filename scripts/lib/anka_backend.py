"""Simulated Anka for a host under test: the agent pulls templates from a Registry in this process through `anka`."""

from __future__ import annotations

import shutil
import signal
import time
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

import psutil

from agent.images.anka.version import version_digest
from scripts.lib.backend import list_paths, running_commands
from tests.simulators.anka.faults import Switches, read_faults, set_faults
from tests.simulators.anka.install import install
from tests.simulators.anka.registry import AnkaRegistry
from tests.simulators.anka.state import Home

if TYPE_CHECKING:
    from pathlib import Path

    from scripts.lib.host import Host

TEMPLATE = "macos"


class AnkaBackend:
    """A simulated Mac with Anka and two slots, and an Anka Registry. See `Backend`."""

    def __init__(self, directory: Path, **anka: str | float) -> None:
        """`anka` holds keys of `[hypervisor.anka]`."""
        self._directory = directory
        self._anka = anka
        self.home = Home(directory / "anka")
        self.registry = AnkaRegistry()
        self._stack = AsyncExitStack()
        self.config = ""

    async def open(self) -> None:
        """Start the Registry."""
        await self._stack.enter_async_context(self.registry)
        program = install(self.home.root)
        self.home.prepare()
        keys = {"binary": str(program), "logs": str(self.home.logs), "registry": self.registry.url, **self._anka}
        values = "\n".join(f"{key} = {value}" if isinstance(value, int | float) else f'{key} = "{value}"'
                           for key, value in keys.items())  # fmt: skip
        self.config = f'[hypervisor]\nkind = "anka"\n[hypervisor.anka]\n{values}\n'

    def add_image(self, version: str, **guest: Any) -> str:  # noqa: ANN401 - any JSON value
        """Push a tag to the Registry; return its reference."""
        self.registry.push(TEMPLATE, version, **guest)
        return f"anka:{TEMPLATE}:{version}"

    def digest(self, version: str) -> str:
        """Return the digest of a pushed tag."""
        template = next(one for one in self.registry.templates.values() if one.name == TEMPLATE)
        tag = next(tag for tag in template.tags if tag.name == version)
        return version_digest(template.id, version, tuple(tag.images))

    async def make_images(self, host: Host, versions: tuple[str, ...]) -> dict[str, str]:
        """See `Backend`."""
        await self.open()
        host.configure(self.config)
        return {version: self.add_image(version) for version in versions}

    def set_faults(self, **switches: Switches) -> None:
        """Set the faults of `anka`, or remove all of them; see `tests.simulators.anka.faults`."""
        set_faults(self.home.root, **switches)

    def wait_for_faults_used(self) -> None:
        """Wait until every fault with a number of times has occurred that often. Blocks. Raises `TimeoutError`."""
        deadline_s = time.monotonic() + 30
        while any(switches.get("times", 1) > 0 for switches in read_faults(self.home.root).values()):
            if time.monotonic() > deadline_s:
                raise TimeoutError("the faults did not occur")
            time.sleep(0.05)

    def clear_faults(self) -> None:
        """Remove all faults of `anka` and free leaked slots."""
        self.set_faults()
        self.home.free_leaked_slots()

    def processes(self) -> dict[str, list[psutil.Process]]:
        """See `Backend`. The last argument of a hypervisor process is the VM's name."""
        found: dict[str, list[psutil.Process]] = {}
        for process, command in running_commands():
            if str(self.home.root) in command:
                found.setdefault(command[-1], []).append(process)
        return found

    def tool_processes(self) -> list[psutil.Process]:
        """Return the running `anka` commands."""
        program = str(self.home.root / "bin" / "anka")
        return [process for process, command in running_commands() if program in command]

    def hang(self, name: str) -> None:
        """See `Backend`."""
        (process,) = self.processes()[name]
        process.send_signal(signal.SIGSTOP)

    def delete_files(self, name: str) -> None:
        """See `Backend`. Keeps the agent's record of the VM."""
        for vm in self.home.all():
            if vm.name == name:
                shutil.rmtree(self.home.vms / vm.uuid, ignore_errors=True)

    def list_vms_with_files(self) -> frozenset[str]:
        """See `Backend`. Includes templates."""
        return frozenset(vm.name for vm in self.home.all())

    def list_leftovers(self) -> list[str]:
        """See `Backend`. A template is an image and stays."""
        vms = [f"VM {vm.name}" for vm in self.home.all() if not vm.tags] if self.home.vms.exists() else []
        return vms + list_paths(self._directory / "data" / "vms")

    async def close(self) -> None:
        """See `Backend`."""
        for process in [*self.tool_processes(), *(one for several in self.processes().values() for one in several)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        await self._stack.aclose()
