"""Bringing a VM's process up: from its directory to a QEMU that answers on its monitor."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from agent.hypervisors.contract import HypervisorError
from agent.hypervisors.qemu import layout
from agent.hypervisors.qemu.cmdline import Launch, command_line
from agent.hypervisors.qemu.firmware import choose_firmware
from agent.hypervisors.qemu.monitor import MonitorError, monitor
from agent.hypervisors.qemu.sockets import listen
from agent.processes.process import spawn_detached

if TYPE_CHECKING:
    from pathlib import Path

    from agent.hypervisors.contract import VmSpec
    from agent.hypervisors.qemu.fleet import RunningVm
    from agent.hypervisors.qemu.toolchain import Toolchain
    from agent.processes.process import ProcessIdentity

ANSWER_S: Final = 30.0
"""How long QEMU may take from exec to its first answer: 0.1 s on an idle machine."""
DYING_S: Final = 2.0
"""How long a process that hung up may take to be reported as ended."""


def spawn(tools: Toolchain, spec: VmSpec, directory: Path, *, incoming: bool = False) -> ProcessIdentity:
    """Start QEMU in a VM's directory. Blocks: call it in a thread. Raises `OSError` or `HypervisorError`.

    The sockets are made and listened on here and only inherited by QEMU: whoever connects is queued from now on,
    and need not guess when QEMU has made them.
    """
    nvram = directory / layout.NVRAM
    monitor_socket = listen(directory / layout.MONITOR)
    with monitor_socket, listen(directory / layout.AGENT) as agent_socket:
        descriptors = (monitor_socket.fileno(), agent_socket.fileno())
        argv = command_line(
            Launch(
                binary=tools.emulator,
                machine=tools.machine,
                accelerator=tools.accelerator,
                spec=spec,
                directory=directory,
                firmware=choose_firmware(tools.firmware, tools.machine, nvram) if nvram.exists() else None,
                monitor_fd=descriptors[0],
                agent_fd=descriptors[1],
                incoming=incoming,
                inherited=incoming and (directory / layout.BASE).exists(),
            )
        )
        return spawn_detached(argv, output=directory / layout.LOG, cwd=directory, pass_fds=descriptors)


async def wait_until_up(vm: RunningVm) -> None:
    """Return once QEMU has set the VM up and runs it; learns its ports on the way.

    Raises `HypervisorError` with QEMU's own last words when it ended instead.
    """
    try:
        async with monitor(vm.name, vm.directory / layout.MONITOR, timeout_s=ANSWER_S) as qmp:
            vm.ports = await qmp.forwarded_ports()
    except MonitorError as error:
        try:
            async with asyncio.timeout(DYING_S):
                await vm.exited.wait()
        except TimeoutError:
            raise HypervisorError(f"{vm.name} was started but does not come up: {error}") from error
        said = vm.exit.detail if vm.exit else ""
        raise HypervisorError(f"{vm.name} ended as soon as it was started: {said or 'it said nothing'}") from error
