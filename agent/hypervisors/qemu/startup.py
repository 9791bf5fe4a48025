"""The start of a VM's QEMU process, until it answers on its monitor."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from agent.hypervisors.contract import HypervisorError
from agent.hypervisors.qemu import layout, snapshot
from agent.hypervisors.qemu.cmdline import RESUME_PORT, LaunchOptions, Ram, command_line
from agent.hypervisors.qemu.firmware import choose_firmware
from agent.hypervisors.qemu.monitor import MonitorError, monitor
from agent.hypervisors.qemu.sockets import listen
from agent.processes.process import spawn_detached

if TYPE_CHECKING:
    from pathlib import Path

    from agent.hypervisors.contract import VmSpec
    from agent.hypervisors.qemu.running import QemuRunningVm
    from agent.hypervisors.qemu.toolchain import Toolchain
    from agent.processes.process import ProcessIdentity

SOCKETS: Final = (layout.MONITOR_SOCKET, layout.AGENT_SOCKET, layout.RESUME_SOCKET)
ANSWER_S: Final = 30.0
"""How long QEMU may take from exec to its first answer: 0.1 s on an idle machine."""
EXIT_REPORT_S: Final = 2.0
"""How long the exit of a process that closed its monitor may take to be reported."""


def start_process(
    tools: Toolchain, spec: VmSpec, directory: Path, *, incoming: bool = False, ram: Ram = Ram.OWN
) -> ProcessIdentity:
    """Start QEMU in a VM's directory. Blocks: call it in a thread. Raises `OSError` or `HypervisorError`.

    This function makes the listening sockets, and QEMU inherits them: the kernel queues a client that connects before
    QEMU accepts, so no client has to poll for the sockets.
    """
    nvram = directory / layout.NVRAM
    with contextlib.ExitStack() as stack:
        sockets = (stack.enter_context(listen(directory / name)) for name in SOCKETS)
        descriptors = tuple(socket.fileno() for socket in sockets)
        argv = command_line(
            LaunchOptions(
                binary=tools.emulator,
                machine=tools.machine,
                accelerator=tools.accelerator,
                spec=spec,
                directory=directory,
                firmware=choose_firmware(tools.firmware, tools.machine, nvram) if nvram.exists() else None,
                monitor_fd=descriptors[0],
                agent_fd=descriptors[1],
                resume_fd=descriptors[2],
                incoming=incoming,
                is_from_template=incoming and (directory / layout.BASE).exists(),
                ram=ram,
            )
        )
        return spawn_detached(argv, output=directory / layout.LOG, cwd=directory, pass_fds=descriptors)


async def wait_until_up(vm: QemuRunningVm, *, snapshot_ram: Ram | None = None) -> None:
    """Return once QEMU runs the VM, and set `ports` and `is_hook_waiting`.

    With `snapshot_ram`, the VM resumes from its snapshot. Raises `OSError`, and `HypervisorError` with QEMU's last
    output if it ended instead.
    """
    timeout_s = ANSWER_S if snapshot_ram is None else snapshot.LOAD_S
    try:
        async with monitor(vm.name, vm.directory / layout.MONITOR_SOCKET, timeout_s=timeout_s) as qmp:
            vm.ports = await qmp.forwarded_ports()
            if snapshot_ram is not None:
                await vm.agent.connect()
                await snapshot.load_snapshot(qmp, vm.directory, snapshot_ram)
                vm.is_hook_waiting = vm.is_identity_pending and await qmp.is_port_open(RESUME_PORT)
    except MonitorError as error:
        if not await vm.exited_within(EXIT_REPORT_S):
            raise HypervisorError(f"{vm.name} was started but does not come up: {error}") from error
        output = (vm.exit.detail if vm.exit else "") or "no output"
        raise HypervisorError(f"{vm.name} ended immediately after its start: {output}") from error
