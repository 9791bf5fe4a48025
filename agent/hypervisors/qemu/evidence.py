"""The evidence of a VM's state, as files: console, QEMU's log, state, screenshot. Works for ended VMs too."""

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
    from agent.hypervisors.qemu.running import QemuRunningVm
    from agent.processes.process import ProcessIdentity

TAIL_BYTES: Final = 256 << 10
QUERY_S: Final = 1.0
"""How long a monitor may take over all queries: a running QEMU takes milliseconds. The VM holds its slot until then."""
STATE: Final = "state.json"


async def gather_evidence(directory: Path, vm: QemuRunningVm | None, last_exit: VmExit | None, into: Path) -> None:
    """Write the evidence into the directory `into`. `vm` is None if it does not run. Raises `HypervisorError`."""
    state: dict[str, object] = {"running": vm is not None}
    if last_exit is not None:
        state["exit"] = {"code": last_exit.code, "detail": last_exit.detail}
    if vm is not None:
        state["process"] = await asyncio.to_thread(_process_facts, vm.process)
        state["monitor"] = await _query_monitor(vm)
    try:
        await asyncio.to_thread(_write, directory, state, into)
    except OSError as error:
        raise HypervisorError(f"evidence cannot be written to {into}: {error}") from error


async def _query_monitor(vm: QemuRunningVm) -> object:
    """Return the machine's state, and let QEMU save a screenshot. A monitor that fails is evidence too."""
    try:
        async with monitor(vm.name, vm.directory / layout.MONITOR_SOCKET, timeout_s=QUERY_S) as qmp:
            answers = {name: await qmp.run(name) for name in ("query-status", "query-block", "query-cpus-fast")}
            await qmp.run("screendump", filename=layout.SCREEN, format="png")
    except MonitorError as error:
        return {"error": str(error)}
    return answers


def _process_facts(process: ProcessIdentity) -> dict[str, Any]:
    try:
        attributes = ["pid", "status", "create_time", "cpu_times", "memory_info", "num_threads", "num_fds", "cmdline"]
        facts: dict[str, Any] = psutil.Process(process.pid).as_dict(attributes)
    except psutil.Error as error:
        return {"error": str(error)}
    return facts if is_alive(process) else {"error": "it ended during the query"}


def _write(directory: Path, state: dict[str, object], into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    into.joinpath(STATE).write_text(json.dumps(state, indent=2, default=str))
    for name in (layout.CONSOLE, f"{layout.CONSOLE}.1", layout.LOG):
        if output := read_tail(directory / name, TAIL_BYTES):
            into.joinpath(name).write_bytes(output)
    screen = directory / layout.SCREEN
    if screen.exists():
        shutil.move(screen, into / layout.SCREEN)
