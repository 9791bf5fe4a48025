"""The evidence of an Anka VM's state, as files: the output of `anka show`, and the tails of Anka's logs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.anka.command import runs_as_root
from agent.hypervisors.contract import HypervisorError
from agent.processes.bounded_output import read_tail
from agent.processes.command import CommandError

if TYPE_CHECKING:
    from agent.anka.command import Anka
    from agent.hypervisors.contract import VmExit

TAIL_BYTES: Final = 256 << 10
QUERY_S: Final = 5.0
ROOT_LOGS: Final = Path("/Library/Logs/Anka")
COMMON_LOG: Final = "anka.log"


def default_logs() -> Path:
    """Return the folder of Anka's logs for the agent's user."""
    return ROOT_LOGS if runs_as_root() else Path.home() / "Library" / "Logs" / "Anka"


async def gather_evidence(anka: Anka, logs: Path, name: str, last_exit: VmExit | None, into: Path) -> None:
    """Write the evidence of a VM into the directory `into`. Raises `HypervisorError`."""
    state: dict[str, object] = {"running": False}
    uuid = ""
    try:
        shown = (await anka.query("show", name, timeout_s=QUERY_S)).body
        if isinstance(shown, dict):
            state |= {"running": shown.get("status") == "running", "show": _without_secrets(shown)}
            uuid = str(shown.get("uuid") or "")
    except CommandError as error:
        state["error"] = str(error)
    if last_exit is not None:
        state["exit"] = {"code": last_exit.code, "detail": last_exit.detail}
    try:
        await asyncio.to_thread(_write, logs, uuid, state, into)
    except OSError as error:
        raise HypervisorError(f"evidence cannot be written to {into}: {error}") from error


def _without_secrets(shown: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in shown.items() if key not in ("vnc_password", "vnc_connection_string")}


def _write(logs: Path, uuid: str, state: dict[str, object], into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    into.joinpath("state.json").write_text(json.dumps(state, indent=2, default=str))
    sources = {"console.log": f"{uuid}.log", COMMON_LOG: COMMON_LOG}
    for target, source in sources.items():
        if uuid and (text := read_tail(logs / source, TAIL_BYTES)):
            into.joinpath(target).write_bytes(text)
