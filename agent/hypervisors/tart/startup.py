"""The start of a VM's `tart run`, and the reason why a start failed."""

from __future__ import annotations

import asyncio
import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from agent.hypervisors.contract import HypervisorError, SlotsTakenError
from agent.hypervisors.tart.layout import LOG, SOCKET
from agent.hypervisors.tart.processes import list_framework_pids
from agent.hypervisors.tart.run_result import RUN_MARKER, RunEnding
from agent.processes.process import spawn_detached

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.hypervisors.tart.layout import TartLayout
    from agent.hypervisors.tart.running import TartRunningVm
    from agent.hypervisors.tart.tool import TartTool
    from agent.processes.process import ProcessIdentity

MACOS_SLOTS: Final = 2
"""macOS VMs that may run on one Mac at the same time, of all users of the framework together (Apple's license)."""
_PERIOD_S: Final = 0.02


class SlotsLeakedError(SlotsTakenError):
    """The Mac refuses another VM although only `running` of them run: it has not freed the slot of one that ended."""

    code = "slots-leaked"

    def __init__(self, message: str, *, remedy: str, running: int) -> None:
        super().__init__(message, remedy=remedy)
        self.running = running


def start_process(tool: TartTool, name: str, where: TartLayout, flags: Sequence[str]) -> ProcessIdentity:
    """Start `tart run` in a session of its own, its output in a file. Blocks: call it in a thread. Raises `OSError`."""
    argv = (tool.program, "run", "--no-graphics", *flags, name)
    directory, output = where.vm(name), where.record(name) / LOG
    (directory / SOCKET).unlink(missing_ok=True)  # its appearance shows that the VM is started
    with output.open("a") as log:
        log.write(f"{RUN_MARKER} {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {shlex.join(argv)}\n")
    return spawn_detached(argv, output=output, cwd=directory, env=tool.env)


async def wait_until_started(vm: TartRunningVm, where: TartLayout, *, timeout_s: float) -> None:
    """Return once Tart has started the VM: it then makes the control socket.

    Raises `HypervisorError` with Tart's own message if `tart run` ended, or if neither happens in time.
    """
    socket = where.vm(vm.name) / SOCKET
    try:
        async with asyncio.timeout(timeout_s):
            while not await asyncio.to_thread(socket.exists):
                if await vm.exited_within(_PERIOD_S):
                    raise HypervisorError(f"`tart run` ended immediately: {vm.last_output}")
    except TimeoutError:
        raise HypervisorError(f"`tart run` has not started the VM in {timeout_s:g} s") from None


async def explain_start_failure(vm: TartRunningVm, error: HypervisorError, running: int) -> HypervisorError:
    """Return the reason for a failed start. `running` VMs were observed to run in this Tart home."""
    ending = vm.result.ending if vm.result else RunEnding.QUIET
    if ending is RunEnding.NO_SLOT:
        return await _slots_error(vm, running)
    if ending is RunEnding.STILL_RUNNING:
        return HypervisorError(
            f"{vm.name} still runs in a process that this agent cannot find: {vm.last_output}",
            remedy="look for its com.apple.Virtualization.VirtualMachine process",
        )
    return HypervisorError(f"{vm.name} cannot be started: {error.message}")


async def _slots_error(vm: TartRunningVm, running: int) -> SlotsTakenError:
    pids = ", ".join(map(str, await asyncio.to_thread(list_framework_pids))) or "none"
    remedy = f"end the VMs that hold the slots (processes {pids}); if there are none, restart the Mac"
    if running < MACOS_SLOTS:
        message = f"this Mac refuses another VM though only {running} of its {MACOS_SLOTS} run: {vm.last_output}"
        return SlotsLeakedError(message, remedy=remedy, running=running)
    return SlotsTakenError(f"{running} VMs run on this Mac, and no more may: {vm.last_output}", remedy=remedy)
