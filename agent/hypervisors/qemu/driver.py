"""The qemu driver: real VMs on Linux, and Linux guests on Macs. Holds no policy."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from agent.domain.model import Observed
from agent.domain.names import PREFIX
from agent.hypervisors.captured_command import capture
from agent.hypervisors.contract import (
    Address,
    Capabilities,
    ExecResult,
    GuestError,
    HealthFact,
    HypervisorError,
    VmNotFoundError,
)
from agent.hypervisors.qemu import layout, snapshot
from agent.hypervisors.qemu.clone import make_clone, remove_vm
from agent.hypervisors.qemu.cmdline import Ram
from agent.hypervisors.qemu.evidence import gather_evidence
from agent.hypervisors.qemu.exec_session import QemuExecSession
from agent.hypervisors.qemu.layout import QemuLayout
from agent.hypervisors.qemu.monitor import MonitorError, monitor
from agent.hypervisors.qemu.reinitialize import reinitialize, require_hook, set_clock
from agent.hypervisors.qemu.running import QemuRunningVm, QemuRunningVms
from agent.hypervisors.qemu.startup import start_process, wait_until_up
from agent.hypervisors.qemu.template_capture import abort_capture, capture_template, read_disk_header, remove_draft
from agent.hypervisors.qemu.templates import TemplateRecord, TemplateStore, machine_id
from agent.hypervisors.qemu.toolchain import Toolchain, find_toolchain
from agent.hypervisors.running import require_ours
from agent.processes.bounded_output import truncate_log
from agent.processes.command import CommandRunner
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.config import QemuConfig
    from agent.domain.model import LocalImage
    from agent.hypervisors.contract import VmExit, VmSpec
    from agent.hypervisors.sessions import ExecSession

T = TypeVar("T")

QUERY_S: Final = 5.0
"""How long QEMU or the guest agent may take for a request that does not depend on the guest's workload."""
LOG_LIMIT_BYTES: Final = 8 << 20
"""Size at which the driver cuts a VM's console or log to its last half."""


class QemuHypervisor:
    """QEMU as a `Hypervisor`.

    `vms_dir` holds the VMs and `templates_dir` the templates, on the same file system. `state_dir` caches results of
    tests of this host.
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
        self._where = QemuLayout(vms_dir, prefix=prefix)
        self._templates = TemplateStore(templates_dir)
        self._runner = runner or CommandRunner()
        self._vms = QemuRunningVms(self._where)
        self._tools: Toolchain | None = None
        self._tools_lock = asyncio.Lock()

    @property
    def version(self) -> str:
        """QEMU's version and its accelerator, empty before `preflight`."""
        return f"{self._tools.version} ({self._tools.accelerator})" if self._tools else ""

    async def preflight(self) -> None:
        """See `Hypervisor`. Also removes the templates that this host's QEMU cannot use."""
        machine = machine_id(await self._toolchain())
        await self._in_store(lambda store: store.remove_unusable(machine))

    async def health(self) -> tuple[HealthFact, ...]:
        """See `Hypervisor`. Reports nothing."""
        return ()

    def on_exit(self, listener: Callable[[VmExit], None]) -> None:
        """See `Hypervisor`."""
        self._vms.on_exit(listener)

    async def inventory(self) -> tuple[Observed, ...]:
        """See `Hypervisor`. Also trims the logs of VMs of this agent, and lets VMs of interrupted templates run on."""
        processes = {vm.name: vm.process.pid for vm in await self._vms.survey()}
        await asyncio.gather(*(abort_capture(vm) for vm in self._vms.paused()))
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
                ours=self._where.is_ours(name),
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
        require_ours(spec.name, self._where.prefix)
        tools, files = await self._toolchain(), None
        if template is not None:
            record = TemplateRecord(machine_id(tools), str(image.disk))
            files = await self._in_store(lambda store: store.find(template, record))
        await make_clone(spec.name, image, self._where, tools, self._runner, template=files)

    async def save_template(self, name: str, template: str) -> None:
        """See `Hypervisor`. Refuses a VM that started from a template: each generation would add a disk layer."""
        require_ours(name, self._where.prefix)
        self._templates.check_name(template)
        vm, tools = await self._require_ready(name), await self._toolchain()
        image, _ = await self._in_store(lambda _: read_disk_header(vm.directory / layout.DISK))
        if image == layout.BASE:
            raise HypervisorError(f"{name} started from a template; only a VM that booted can become one")
        await require_hook(vm)
        record = TemplateRecord(machine_id(tools), image)
        draft = await capture_template(vm, self._vms, tools, self._runner)
        try:
            await self._in_store(lambda store: store.publish(draft, template, record))
        finally:
            await run_in_thread(partial(remove_draft, vm.directory))

    async def templates(self) -> frozenset[str]:
        """See `Hypervisor`."""
        machine = machine_id(await self._toolchain())
        return await self._in_store(lambda store: store.names(machine))

    async def drop_template(self, template: str) -> None:
        """See `Hypervisor`."""
        await self._in_store(lambda store: store.remove(template))

    async def start(self, spec: VmSpec) -> None:
        """See `Hypervisor`. Starting a running VM succeeds; starting a suspended VM boots it."""
        vm = await self._vms.find(spec.name)
        if vm is not None:
            if vm.is_identity_pending:
                raise HypervisorError(f"the reinitialisation of {spec.name} was interrupted", remedy="delete it")
        elif await asyncio.to_thread((self._where.vm(spec.name) / layout.IDENTITY_PENDING).exists):
            await self._require_snapshot(spec.name)
            await self._resume_from_snapshot(spec)
        else:
            await self._launch(spec, incoming=False)

    async def stop(self, name: str, *, grace_s: float) -> None:
        """See `Hypervisor`. Kills the process after the grace: no file of a stopped VM is used again."""
        require_ours(name, self._where.prefix)
        while (vm := await self._vms.find(name)) is not None:
            deadline_s = time.monotonic() + grace_s
            if grace_s > 0 and await self._request_shutdown(vm, timeout_s=min(QUERY_S, grace_s / 2)):
                await vm.exited_within(deadline_s - time.monotonic())
            await self._vms.end(vm)

    async def delete(self, name: str) -> None:
        """See `Hypervisor`."""
        require_ours(name, self._where.prefix)
        await self._vms.require_stopped(name)
        await run_in_thread(partial(remove_vm, self._where, name))
        self._vms.forget(name)

    async def suspend(self, name: str) -> None:
        """See `Hypervisor`."""
        vm = await self._require_ready(name)
        await snapshot.save_snapshot(vm)
        await vm.exited_within(QUERY_S)
        await self._vms.end(vm)
        try:
            await asyncio.to_thread(snapshot.publish_snapshot, vm.directory)
        except OSError as error:
            raise HypervisorError(f"the snapshot of {name} cannot be saved: {error}") from error

    async def resume(self, spec: VmSpec) -> None:
        """See `Hypervisor`. Removes the snapshot."""
        await self._require_snapshot(spec.name)
        await self.stop(spec.name, grace_s=0)  # ends a resume that was interrupted
        await self._resume_from_snapshot(spec)

    async def address(self, name: str) -> Address:
        """See `Hypervisor`."""
        vm = await self._require_ready(name)
        if vm.ports is None:
            async with monitor(name, vm.directory / layout.MONITOR_SOCKET, timeout_s=QUERY_S) as qmp:
                vm.ports = await qmp.forwarded_ports()
        return Address("127.0.0.1", dict(vm.ports))

    async def ping(self, name: str, *, timeout_s: float) -> None:
        """See `Hypervisor`."""
        vm = await self._require_ready(name)
        await vm.agent.ping(timeout_s=timeout_s)

    async def execute(self, name: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
        """See `Hypervisor`."""
        vm = await self._require_ready(name)
        return await vm.agent.execute(capture(argv), timeout_s=timeout_s)

    async def open_exec(self, name: str, argv: tuple[str, ...], *, stdin: bool) -> ExecSession:
        """See `SupportsExecSessions`."""
        vm = await self._require_ready(name)
        return await QemuExecSession.start(vm.agent, argv, stdin=stdin)

    async def evidence(self, name: str, into: Path) -> None:
        """See `Hypervisor`."""
        vm = await self._vms.find(name)
        await gather_evidence(self._where.vm(name), vm, self._vms.last_exit(name), into)

    async def close(self) -> None:
        """See `Hypervisor`."""
        self._vms.close()

    async def _toolchain(self) -> Toolchain:
        async with self._tools_lock:
            if self._tools is None:
                self._tools = await find_toolchain(self._config, self._runner, state_dir=self._state_dir)
            return self._tools

    async def _in_store(self, work: Callable[[TemplateStore], T]) -> T:
        """Run `work` on the templates in a thread, to its end even if this task is cancelled."""
        try:
            return await run_in_thread(lambda: work(self._templates))
        except OSError as error:
            raise HypervisorError(
                f"the templates cannot be accessed: {error}", remedy="check the data volume"
            ) from error

    async def _require_snapshot(self, name: str) -> None:
        if not await asyncio.to_thread(snapshot.has_snapshot, self._where.vm(name)):
            raise HypervisorError(f"{name} has no snapshot to resume from")

    async def _resume_from_snapshot(self, spec: VmSpec) -> None:
        """Start a VM from its snapshot, then set its clock and, if it came from a template, its identity."""
        vm = await self._launch(spec, incoming=True)
        try:
            if vm.is_identity_pending:
                await reinitialize(vm)
                await asyncio.to_thread((vm.directory / layout.IDENTITY_PENDING).unlink)
                vm.is_identity_pending = False
            else:
                await set_clock(vm)
        except (HypervisorError, OSError) as error:
            await self._vms.end(vm)
            raise HypervisorError(f"{spec.name} cannot resume from its snapshot: {error}") from error

    async def _launch(self, spec: VmSpec, *, incoming: bool) -> QemuRunningVm:
        tools = await self._toolchain()
        directory = self._where.vm(spec.name)
        if not await asyncio.to_thread(directory.is_dir):
            raise VmNotFoundError(f"there is no VM named {spec.name}")
        ram = Ram.OWN
        try:
            if incoming:
                ram = await asyncio.to_thread(snapshot.ram_of, directory)
            else:
                await asyncio.to_thread(snapshot.remove_snapshot, directory)
            start = partial(start_process, tools, spec, directory, incoming=incoming, ram=ram)
            vm = await self._vms.start(spec.name, start)
        except OSError as error:
            raise HypervisorError(f"{spec.name} cannot be started: {error}") from error
        try:
            await wait_until_up(vm, snapshot_ram=ram if incoming else None)
        except (HypervisorError, OSError) as error:
            await self._vms.end(vm)
            raise HypervisorError(f"{spec.name} cannot be started: {error}") from error
        return vm

    async def _require_ready(self, name: str) -> QemuRunningVm:
        """Return a running VM that has its own identity. Raises `HypervisorError`."""
        vm = await self._vms.require(name)
        if vm.is_identity_pending:
            raise GuestError(f"{name} has not reinitialised its identity yet")
        return vm

    async def _request_shutdown(self, vm: QemuRunningVm, *, timeout_s: float) -> bool:
        """Request a shutdown by the guest agent, otherwise by the power button. Returns whether either accepted it."""
        try:
            await vm.agent.shut_down(timeout_s=timeout_s)
        except GuestError:
            try:
                async with monitor(vm.name, vm.directory / layout.MONITOR_SOCKET, timeout_s=timeout_s) as qmp:
                    await qmp.run("system_powerdown")
            except MonitorError:
                return False
        return True

    def _names_with_trimmed_logs(self) -> set[str]:
        names = self._where.names()
        for name in filter(self._where.is_ours, names):
            for log_file in (layout.CONSOLE, layout.LOG):
                truncate_log(self._where.vm(name) / log_file, limit_bytes=LOG_LIMIT_BYTES)
        return names

    def _images(self, names: set[str]) -> dict[str, str]:
        return {name: self._where.image(name) for name in filter(self._where.is_ours, names)}

    def _damages(self, names: set[str]) -> dict[str, str]:
        return {name: self._where.damage(name) for name in filter(self._where.is_ours, names)}

    def _suspended(self, names: set[str]) -> set[str]:
        return {name for name in names if snapshot.has_snapshot(self._where.vm(name))}
