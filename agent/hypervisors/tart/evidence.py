"""The evidence of a VM's state, as files: the output of `tart run`, and the state. Works for ended VMs too."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

import psutil

from agent.hypervisors.contract import HypervisorError
from agent.hypervisors.tart.layout import LOG, SOCKET
from agent.hypervisors.tart.processes import list_framework_pids
from agent.processes.bounded_output import read_tail

if TYPE_CHECKING:
    from pathlib import Path

    from agent.hypervisors.contract import VmExit
    from agent.hypervisors.tart.layout import TartLayout
    from agent.hypervisors.tart.running import TartRunningVm
    from agent.processes.process import ProcessIdentity

TAIL_BYTES: Final = 256 << 10


async def gather_evidence(
    name: str, where: TartLayout, vm: TartRunningVm | None, last_exit: VmExit | None, into: Path
) -> None:
    """Write the evidence into the directory `into`. `vm` is None if it does not run. Raises `HypervisorError`."""
    state: dict[str, object] = {"running": vm is not None}
    if last_exit is not None:
        state["exit"] = {"code": last_exit.code, "detail": last_exit.detail}
    if vm is not None:
        state["process"] = await asyncio.to_thread(_process_facts, vm.process)
        state["address"] = vm.ip
    try:
        await asyncio.to_thread(_write, name, where, state, into)
    except OSError as error:
        raise HypervisorError(f"evidence cannot be written to {into}: {error}") from error


def _process_facts(process: ProcessIdentity) -> dict[str, Any]:
    attributes = ["pid", "status", "create_time", "cpu_times", "memory_info", "num_threads", "cmdline"]
    try:
        facts: dict[str, Any] = psutil.Process(process.pid).as_dict(attributes)
    except psutil.Error as error:
        return {"error": str(error)}
    return facts


def _write(name: str, where: TartLayout, state: dict[str, object], into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    directory = where.vm(name)
    state["files"] = {path.name: path.stat().st_size for path in directory.iterdir()} if directory.is_dir() else {}
    state["suspended"] = where.is_suspended(name)
    state["control_socket"] = (directory / SOCKET).exists()
    state["virtual_machine_processes"] = list_framework_pids()
    try:
        state["config"] = where.config(name)
    except (HypervisorError, FileNotFoundError) as error:
        state["config"] = f"unreadable: {error}"
    into.joinpath("state.json").write_text(json.dumps(state, indent=2, default=str))
    if output := read_tail(where.record(name) / LOG, TAIL_BYTES):
        into.joinpath(LOG).write_bytes(output)
