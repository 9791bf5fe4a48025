"""Bringing a VM's process up: from its files to a `tart run` that has started it, or the reason why not."""

from __future__ import annotations

import asyncio
import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from agent.hypervisors.contract import HypervisorError, SlotsTakenError
from agent.hypervisors.tart.layout import LOG, SOCKET
from agent.hypervisors.tart.outcome import BEGIN, Ending
from agent.hypervisors.tart.processes import helpers
from agent.processes.process import spawn_detached

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.hypervisors.tart.fleet import RunningVm
    from agent.hypervisors.tart.layout import Layout
    from agent.hypervisors.tart.tool import TartTool
    from agent.processes.process import ProcessIdentity

MACOS_SLOTS: Final = 2
"""macOS VMs that Apple lets run on one Mac at once, counted over every user of the framework."""
_PERIOD_S: Final = 0.02


class SlotsLeakedError(SlotsTakenError):
    """The Mac refuses another VM although only `running` of them run: it has not let go of one that ended."""

    code = "slots-leaked"

    def __init__(self, message: str, *, remedy: str, running: int) -> None:
        super().__init__(message, remedy=remedy)
        self.running = running


def spawn(tool: TartTool, name: str, where: Layout, flags: Sequence[str]) -> ProcessIdentity:
    """Start `tart run` apart from the agent, its output in a file. Blocks: call it in a thread. Raises `OSError`."""
    argv = (tool.program, "run", "--no-graphics", *flags, name)
    directory, output = where.vm(name), where.record(name) / LOG
    (directory / SOCKET).unlink(missing_ok=True)  # its appearance is how a VM is known to be started
    with output.open("a") as log:
        log.write(f"{BEGIN} {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {shlex.join(argv)}\n")
    return spawn_detached(argv, output=output, cwd=directory, env=tool.env)


async def wait_until_up(vm: RunningVm, where: Layout, *, timeout_s: float) -> None:
    """Return once Tart has started the VM, which it shows by making the control socket.

    Raises `HypervisorError` with Tart's own words when it ended instead, and when it does neither in time.
    """
    socket = where.vm(vm.name) / SOCKET
    try:
        async with asyncio.timeout(timeout_s):
            while not await asyncio.to_thread(socket.exists):
                if await vm.exited_within(_PERIOD_S):
                    raise HypervisorError(f"`tart run` ended as soon as it was started: {_words(vm)}")
    except TimeoutError:
        raise HypervisorError(f"`tart run` has not started the VM in {timeout_s:g} s") from None


async def explained(vm: RunningVm, error: HypervisorError, running: int) -> HypervisorError:
    """Return what a failed start means, when `running` VMs are seen to run in this Tart home."""
    ending = vm.outcome.ending if vm.outcome else Ending.QUIET
    if ending is Ending.NO_SLOT:
        seen = ", ".join(map(str, await asyncio.to_thread(helpers))) or "none"
        remedy = f"end what holds the slots (processes {seen}); if nothing does, restart the Mac"
        if running < MACOS_SLOTS:
            message = f"this Mac refuses another VM though only {running} of its {MACOS_SLOTS} run: {_words(vm)}"
            return SlotsLeakedError(message, remedy=remedy, running=running)
        return SlotsTakenError(f"{running} VMs run on this Mac, and no more may: {_words(vm)}", remedy=remedy)
    if ending is Ending.STILL_ALIVE:
        return HypervisorError(
            f"{vm.name} still runs somewhere, though nothing says so: {_words(vm)}",
            remedy="look for its com.apple.Virtualization.VirtualMachine process",
        )
    return HypervisorError(f"{vm.name} cannot be started: {error.message}")


def _words(vm: RunningVm) -> str:
    return (vm.outcome.words if vm.outcome else "") or "it said nothing"
