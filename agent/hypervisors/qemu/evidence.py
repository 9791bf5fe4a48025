"""What explains a VM's state to a person, as files: console, QEMU's log, state, screen. Works for dead VMs too."""

from __future__ import annotations

import asyncio
import json
import shutil
from typing import TYPE_CHECKING, Any, Final

import psutil

from agent.hypervisors.contract import HypervisorError
from agent.hypervisors.qemu import layout
from agent.hypervisors.qemu.monitor import MonitorError, monitor
from agent.processes.bounded_output import read_tail
from agent.processes.process import is_alive

if TYPE_CHECKING:
    from pathlib import Path

    from agent.hypervisors.contract import VmExit
    from agent.hypervisors.qemu.fleet import RunningVm
    from agent.processes.process import ProcessIdentity

TAIL_BYTES: Final = 256 << 10
ASK_S: Final = 1.0
"""How long a monitor may take over all questions: some milliseconds where QEMU runs. What waits here is the slot."""
STATE: Final = "state.json"


async def gather_evidence(directory: Path, vm: RunningVm | None, last_exit: VmExit | None, into: Path) -> None:
    """Write what can be had into the directory `into`. `vm` is None when it does not run. Raises `HypervisorError`."""
    state: dict[str, object] = {"running": vm is not None}
    if last_exit is not None:
        state["exit"] = {"code": last_exit.code, "detail": last_exit.detail}
    if vm is not None:
        state["process"] = await asyncio.to_thread(_process_facts, vm.process)
        state["monitor"] = await _ask_monitor(vm)
    try:
        await asyncio.to_thread(_write, directory, state, into)
    except OSError as error:
        raise HypervisorError(f"evidence cannot be kept in {into}: {error}") from error


async def _ask_monitor(vm: RunningVm) -> object:
    """Ask for the machine's state and a screenshot; a monitor that does not answer is evidence as well."""
    try:
        async with monitor(vm.name, vm.directory / layout.MONITOR, timeout_s=ASK_S) as qmp:
            answers = {name: await qmp.ask(name) for name in ("query-status", "query-block", "query-cpus-fast")}
            await qmp.ask("screendump", filename=layout.SCREEN, format="png")
    except MonitorError as error:
        return {"error": str(error)}
    return answers


def _process_facts(process: ProcessIdentity) -> dict[str, Any]:
    try:
        seen = psutil.Process(process.pid)
        attributes = ["pid", "status", "create_time", "cpu_times", "memory_info", "num_threads", "num_fds", "cmdline"]
        facts: dict[str, Any] = seen.as_dict(attributes)
    except psutil.Error as error:
        return {"error": str(error)}
    return facts if is_alive(process) else {"error": "it ended while it was looked at"}


def _write(directory: Path, state: dict[str, object], into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    into.joinpath(STATE).write_text(json.dumps(state, indent=2, default=str))
    for name in (layout.CONSOLE, f"{layout.CONSOLE}.1", layout.LOG):
        if said := read_tail(directory / name, TAIL_BYTES):
            into.joinpath(name).write_bytes(said)
    screen = directory / layout.SCREEN
    if screen.exists():
        shutil.move(screen, into / layout.SCREEN)
