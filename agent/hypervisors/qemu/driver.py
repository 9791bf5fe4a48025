"""The qemu driver: real VMs on Linux, and Linux guests on Macs. Puts its parts in order and holds no policy."""

from __future__ import annotations

import asyncio
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from agent.domain.model import Observed
from agent.domain.names import PREFIX
from agent.hypervisors.contract import (
    Address,
    Capabilities,
    ExecResult,
    ForeignVmError,
    GuestError,
    HealthFact,
    HypervisorError,
    VmNotFoundError,
    VmNotRunningError,
)
from agent.hypervisors.qemu import layout, suspend
from agent.hypervisors.qemu.clone import make_clone, remove_vm
from agent.hypervisors.qemu.cmdline import Ram
from agent.hypervisors.qemu.evidence import gather_evidence
from agent.hypervisors.qemu.exec_session import GuestCommand
from agent.hypervisors.qemu.fan_out import abandon_draft, discard_draft, disk_header, draft_template
from agent.hypervisors.qemu.fleet import Fleet, RunningVm, end_of
from agent.hypervisors.qemu.identity import become, check_hook, set_clock
from agent.hypervisors.qemu.launch import spawn, wait_until_up
from agent.hypervisors.qemu.layout import Layout
from agent.hypervisors.qemu.monitor import MonitorError, monitor
from agent.hypervisors.qemu.templates import Record, Templates, machine_id
from agent.hypervisors.qemu.toolchain import Toolchain, find_toolchain
from agent.processes.bounded_output import truncate_log
from agent.processes.command import CommandRunner
from agent.processes.process import kill
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.config import QemuConfig
    from agent.domain.model import LocalImage
    from agent.hypervisors.contract import VmExit, VmSpec
    from agent.hypervisors.sessions import ExecSession

T = TypeVar("T")

ASK_S: Final = 5.0
"""How long QEMU or the guest agent may take over a question that is none of the guest's business."""
LOG_LIMIT_BYTES: Final = 8 << 20
"""Size at which a VM's console or log is cut to its last half."""


class QemuHypervisor:
    """QEMU as a `Hypervisor`. `state_dir` keeps what was learnt about this host.

    VMs lie in `vms_dir`, and what they are cloned from alive in `templates_dir`, on the same file system.
    """

    name: Final = "qemu"
    capabilities: Final = Capabilities(execute=True, suspend=True, templates=True, counts_foreign_slots=False)

    def __init__(
        self,
        config: QemuConfig,
        *,
        vms_dir: Path,
        templates_dir: Path,
        state_dir: Path,
        prefix: str = PREFIX,
        runner: CommandRunner | None = None,
    ) -> None:
        self._config = config
        self._state_dir = state_dir
        self._where = Layout(vms_dir, prefix=prefix)
        self._templates = Templates(templates_dir)
        self._runner = runner or CommandRunner()
        self._fleet = Fleet(self._where)
        self._tools: Toolchain | None = None
        self._finding_tools = asyncio.Lock()

    @property
    def version(self) -> str:
        """QEMU's version and its accelerator, empty before `preflight`."""
        return f"{self._tools.version} ({self._tools.accelerator})" if self._tools else ""

    async def preflight(self) -> None:
        """See `Hypervisor`. On the way it removes the templates that this host's QEMU cannot use."""
        machine = machine_id(await self._toolchain())
        await self._in_store(lambda store: store.sweep(machine))

    async def health(self) -> tuple[HealthFact, ...]:
        """See `Hypervisor`. Nothing beyond listings."""
        return ()

    def on_exit(self, listener: Callable[[VmExit], None]) -> None:
        """See `Hypervisor`."""
        self._fleet.on_exit(listener)

    async def inventory(self) -> tuple[Observed, ...]:
        """See `Hypervisor`. On the way it keeps the logs of our VMs within their limit."""
        processes = {vm.name: vm.process.pid for vm in await self._fleet.survey()}
        await asyncio.gather(*(abandon_draft(vm) for vm in self._fleet.paused()))
        try:
            names = await asyncio.to_thread(self._names_with_trimmed_logs)
            suspended = await asyncio.to_thread(self._suspended, names - processes.keys())
            images = await asyncio.to_thread(self._images, names)
            damages = await asyncio.to_thread(self._damages, names | processes.keys())
        except OSError as error:
            raise HypervisorError(f"the VMs in {self._where.root} cannot be listed: {error}") from error
        return tuple(
            Observed(
                name,
                ours=self._where.ours(name),
                running=name in processes,
                pid=processes.get(name),
                suspended=name in suspended,
                image=images.get(name, ""),
                damaged=damages.get(name, ""),
            )
            for name in sorted(names | processes.keys())
        )

    async def clone(self, spec: VmSpec, image: LocalImage, *, template: str | None = None) -> None:
        """See `Hypervisor`."""
        self._only_ours(spec.name)
        tools, loan = await self._toolchain(), None
        if template is not None:
            record = Record(machine_id(tools), str(image.disk))
            loan = await self._in_store(lambda store: store.lend(template, record))
        await make_clone(spec.name, image, self._where, tools, self._runner, loan=loan)

    async def save_template(self, name: str, template: str) -> None:
        """See `Hypervisor`. A VM that came from a template itself is refused: generations would pile up."""
        self._only_ours(name)
        self._templates.check(template)
        vm, tools = await self._running(name), await self._toolchain()
        image, _ = await self._in_store(lambda _: disk_header(vm.directory / layout.DISK))
        if image == layout.BASE:
            raise HypervisorError(f"{name} came from a template; only a VM that booted can become one")
        await check_hook(vm)
        record = Record(machine_id(tools), image)
        draft = await draft_template(vm, self._fleet, tools, self._runner)
        try:
            await self._in_store(lambda store: store.publish(draft, template, record))
        finally:
            await run_in_thread(partial(discard_draft, vm.directory))

    async def templates(self) -> frozenset[str]:
        """See `Hypervisor`."""
        machine = machine_id(await self._toolchain())
        return await self._in_store(lambda store: store.names(machine))

    async def drop_template(self, template: str) -> None:
        """See `Hypervisor`."""
        await self._in_store(lambda store: store.drop(template))

    async def start(self, spec: VmSpec) -> None:
        """See `Hypervisor`. Starting what runs succeeds; starting what is suspended boots it."""
        vm = await self._fleet.find(spec.name)
        twin = vm.twin if vm else await asyncio.to_thread((self._where.vm(spec.name) / layout.TWIN).exists)
        if vm is None and twin:
            await self._need_memory(spec.name)
            await self._go_on(spec)
        elif vm is None:
            await self._launch(spec, incoming=False)
        elif twin:
            raise HypervisorError(f"{spec.name} was interrupted while it became itself", remedy="delete it")

    async def stop(self, name: str, *, grace_s: float) -> None:
        """See `Hypervisor`. Nothing of a VM is used again once it stopped, so there is no more to it than its end."""
        self._only_ours(name)
        while (vm := await self._fleet.find(name)) is not None:
            deadline_s = time.monotonic() + grace_s
            if grace_s > 0 and await self._ask_to_shut_down(vm, patience_s=min(ASK_S, grace_s / 2)):
                await _exited_within(vm, deadline_s - time.monotonic())
            await _end(vm)

    async def delete(self, name: str) -> None:
        """See `Hypervisor`."""
        self._only_ours(name)
        if vm := await self._fleet.find(name):
            raise HypervisorError(f"{name} still runs as process {vm.process.pid}", remedy="stop it first")
        await run_in_thread(partial(remove_vm, self._where, name))
        self._fleet.forget(name)

    async def suspend(self, name: str) -> None:
        """See `Hypervisor`."""
        vm = await self._running(name)
        await suspend.save_memory(vm)
        await _exited_within(vm, ASK_S)
        await _end(vm)
        try:
            await asyncio.to_thread(suspend.keep_memory, vm.directory)
        except OSError as error:
            raise HypervisorError(f"the memory of {name} cannot be kept: {error}") from error

    async def resume(self, spec: VmSpec) -> None:
        """See `Hypervisor`. The saved memory is used up by it."""
        await self._need_memory(spec.name)
        await self.stop(spec.name, grace_s=0)  # a resume that was interrupted half-way
        await self._go_on(spec)

    async def address(self, name: str) -> Address:
        """See `Hypervisor`."""
        vm = await self._running(name)
        if vm.ports is None:
            async with monitor(name, vm.directory / layout.MONITOR, timeout_s=ASK_S) as qmp:
                vm.ports = await qmp.forwarded_ports()
        return Address("127.0.0.1", dict(vm.ports))

    async def ping(self, name: str, *, timeout_s: float) -> None:
        """See `Hypervisor`."""
        vm = await self._running(name)
        await vm.agent.ping(timeout_s=timeout_s)

    async def execute(self, name: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
        """See `Hypervisor`."""
        vm = await self._running(name)
        return await vm.agent.execute(argv, timeout_s=timeout_s)

    async def open_exec(self, name: str, argv: tuple[str, ...], *, stdin: bool) -> ExecSession:
        """See `StreamsExec`."""
        vm = await self._running(name)
        return await GuestCommand.start(vm.agent, argv, stdin=stdin)

    async def evidence(self, name: str, into: Path) -> None:
        """See `Hypervisor`."""
        vm = await self._fleet.find(name)
        await gather_evidence(self._where.vm(name), vm, self._fleet.last_exit(name), into)

    async def close(self) -> None:
        """See `Hypervisor`."""
        self._fleet.close()

    def _only_ours(self, name: str) -> None:
        if not self._where.ours(name):
            raise ForeignVmError(f"{name} is not ours to touch")

    async def _toolchain(self) -> Toolchain:
        async with self._finding_tools:
            if self._tools is None:
                self._tools = await find_toolchain(self._config, self._runner, state_dir=self._state_dir)
            return self._tools

    async def _in_store(self, work: Callable[[Templates], T]) -> T:
        """Do something with the templates in a thread, to its end."""
        try:
            return await run_in_thread(lambda: work(self._templates))
        except OSError as error:
            raise HypervisorError(f"the templates cannot be used: {error}", remedy="check the data volume") from error

    async def _need_memory(self, name: str) -> None:
        if not await asyncio.to_thread(suspend.has_memory, self._where.vm(name)):
            raise HypervisorError(f"{name} has no saved memory to resume from")

    async def _go_on(self, spec: VmSpec) -> None:
        """Start a VM from its saved memory, which knows neither what time it is now nor, in a twin, who it is."""
        vm = await self._launch(spec, incoming=True)
        try:
            if vm.twin:
                await become(vm)
                await asyncio.to_thread((vm.directory / layout.TWIN).unlink)
                vm.twin = False
            else:
                await set_clock(vm)
        except (HypervisorError, OSError) as error:
            await _end(vm)
            raise HypervisorError(f"{spec.name} cannot go on from its saved memory: {error}") from error

    async def _launch(self, spec: VmSpec, *, incoming: bool) -> RunningVm:
        tools = await self._toolchain()
        directory = self._where.vm(spec.name)
        if not await asyncio.to_thread(directory.is_dir):
            raise VmNotFoundError(f"there is no VM named {spec.name}")
        ram = Ram.OWN
        try:
            if incoming:
                ram = await asyncio.to_thread(suspend.ram_of, directory)
            else:
                await asyncio.to_thread(suspend.drop_memory, directory)
            start = partial(spawn, tools, spec, directory, incoming=incoming, ram=ram)
            vm = await self._fleet.start(spec.name, start)
        except OSError as error:
            raise HypervisorError(f"{spec.name} cannot be started: {error}") from error
        try:
            await wait_until_up(vm, saved_in=ram if incoming else None)
        except (HypervisorError, OSError) as error:
            await _end(vm)
            raise HypervisorError(f"{spec.name} cannot be started: {error}") from error
        return vm

    async def _running(self, name: str) -> RunningVm:
        """Return a VM that runs, as itself."""
        if vm := await self._fleet.find(name):
            if vm.twin:
                raise GuestError(f"{name} has not become itself yet")
            return vm
        if name in await asyncio.to_thread(self._where.names):
            raise VmNotRunningError(f"{name} does not run")
        raise VmNotFoundError(f"there is no VM named {name}")

    async def _ask_to_shut_down(self, vm: RunningVm, *, patience_s: float) -> bool:
        """Ask the guest by its agent, else by its power button. Returns whether either took the request."""
        try:
            await vm.agent.shut_down(timeout_s=patience_s)
        except GuestError:
            try:
                async with monitor(vm.name, vm.directory / layout.MONITOR, timeout_s=patience_s) as qmp:
                    await qmp.ask("system_powerdown")
            except MonitorError:
                return False
        return True

    def _names_with_trimmed_logs(self) -> set[str]:
        names = self._where.names()
        for name in filter(self._where.ours, names):
            for log_file in (layout.CONSOLE, layout.LOG):
                truncate_log(self._where.vm(name) / log_file, limit_bytes=LOG_LIMIT_BYTES)
        return names

    def _images(self, names: set[str]) -> dict[str, str]:
        return {name: self._where.image(name) for name in filter(self._where.ours, names)}

    def _damages(self, names: set[str]) -> dict[str, str]:
        return {name: self._where.damage(name) for name in filter(self._where.ours, names)}

    def _suspended(self, names: set[str]) -> set[str]:
        return {name for name in names if suspend.has_memory(self._where.vm(name))}


async def _exited_within(vm: RunningVm, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await vm.exited.wait()
    except TimeoutError:
        return False
    return True


async def _end(vm: RunningVm) -> None:
    """Kill a VM's process and return when it is gone, also one that is stopped, hung or has lost its files."""
    kill(vm.process, signal.SIGKILL)
    await end_of(vm.exited, f"process {vm.process.pid} of {vm.name}")
