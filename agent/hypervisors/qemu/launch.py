"""Bringing a VM's process up: from its directory to a QEMU that answers on its monitor."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from agent.hypervisors.contract import HypervisorError
from agent.hypervisors.qemu import layout, suspend
from agent.hypervisors.qemu.cmdline import WAITER, Launch, Ram, command_line
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

SOCKETS: Final = (layout.MONITOR, layout.AGENT, layout.WAITER)
ANSWER_S: Final = 30.0
"""How long QEMU may take from exec to its first answer: 0.1 s on an idle machine."""
DYING_S: Final = 2.0
"""How long a process that hung up may take to be reported as ended."""


def spawn(
    tools: Toolchain, spec: VmSpec, directory: Path, *, incoming: bool = False, ram: Ram = Ram.OWN
) -> ProcessIdentity:
    """Start QEMU in a VM's directory. Blocks: call it in a thread. Raises `OSError` or `HypervisorError`.

    The sockets are made and listened on here and only inherited by QEMU: whoever connects is queued from now on,
    and need not guess when QEMU has made them.
    """
    nvram = directory / layout.NVRAM
    with contextlib.ExitStack() as stack:
        sockets = (stack.enter_context(listen(directory / name)) for name in SOCKETS)
        descriptors = tuple(socket.fileno() for socket in sockets)
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
                waiter_fd=descriptors[2],
                incoming=incoming,
                inherited=incoming and (directory / layout.BASE).exists(),
                ram=ram,
            )
        )
        return spawn_detached(argv, output=directory / layout.LOG, cwd=directory, pass_fds=descriptors)


async def wait_until_up(vm: RunningVm, *, saved_in: Ram | None = None) -> None:
    """Return once QEMU has set the VM up and runs it; learns its ports on the way.

    With `saved_in`, it goes on from its saved memory. Raises `HypervisorError`, with QEMU's own last words when it
    ended instead, and `OSError`.
    """
    patience_s = ANSWER_S if saved_in is None else suspend.LOAD_S
    try:
        async with monitor(vm.name, vm.directory / layout.MONITOR, timeout_s=patience_s) as qmp:
            vm.ports = await qmp.forwarded_ports()
            if saved_in is not None:
                await vm.agent.connect()
                await suspend.load_memory(qmp, vm.directory, saved_in)
                vm.waiting = vm.twin and await qmp.is_open(WAITER)
    except MonitorError as error:
        try:
            async with asyncio.timeout(DYING_S):
                await vm.exited.wait()
        except TimeoutError:
            raise HypervisorError(f"{vm.name} was started but does not come up: {error}") from error
        said = vm.exit.detail if vm.exit else ""
        raise HypervisorError(f"{vm.name} ended as soon as it was started: {said or 'it said nothing'}") from error
