"""End `anka pull` processes of a killed agent. Each runs in its own session, so it outlives the agent.

Two parallel pulls corrupt each other (A19), so none may still run when the next agent starts one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Final

import psutil
import structlog

from agent.anka.command import AnkaError
from agent.processes.process import ProcessIdentity, identify, is_alive

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

log = structlog.get_logger()

SEARCH_TIMEOUT_S: Final = 30.0
TERM_GRACE_S: Final = 2.0
KILL_GRACE_S: Final = 5.0
_POLL_S: Final = 0.02
_MAX_INTERPRETER_ARGUMENTS: Final = 4


async def end_stray_pulls(program: str) -> None:
    """End every pull by `program` whose agent is gone. Raises `AnkaError` if one does not end.

    Call this only while this agent runs no pull.
    """
    try:
        async with asyncio.timeout(SEARCH_TIMEOUT_S):
            strays = await asyncio.to_thread(find_stray_pulls, program)
    except TimeoutError:
        raise AnkaError(f"listing the host's processes took longer than {SEARCH_TIMEOUT_S:g} s") from None
    for stray in strays:
        log.warning("anka-stray-pull-ended", pid=stray.pid)
        if not (await _end(stray, signal.SIGTERM, TERM_GRACE_S) or await _end(stray, signal.SIGKILL, KILL_GRACE_S)):
            raise AnkaError(
                f"the stray `anka pull` process {stray.pid} of an earlier agent does not end",
                remedy="end that process, or restart the host; two parallel pulls would corrupt both images",
            )


def find_stray_pulls(program: str) -> tuple[ProcessIdentity, ...]:
    """Return this user's pulls whose agent is gone. Blocks."""
    ancestors = {parent.pid for parent in psutil.Process().parents()} | {1}
    return tuple(
        identity
        for process in psutil.process_iter(["cmdline"])
        if is_pull(process.info["cmdline"] or (), program)
        and (identity := identify(process.pid)) is not None
        and _is_orphan(process, ancestors)
    )


def is_pull(argv: Sequence[str], program: str) -> bool:
    """Return whether these are the arguments of a pull that `AnkaPuller` starts with this program."""
    for number, argument in enumerate(argv[:_MAX_INTERPRETER_ARGUMENTS]):
        if argument == program:
            arguments = list(argv[number + 1 :])
            return arguments[:2] == ["-j", "pull"] and arguments[-5:-3] == ["--fetch-only", "--tag"]
    return False


def _is_orphan(process: psutil.Process, ancestors: Collection[int]) -> bool:
    """Return whether a process of this user leads its session and has the parent of orphans, an ancestor of this agent.

    A process with any other parent is still in use, by another agent or by a user in a shell.
    """
    with contextlib.suppress(psutil.Error, OSError):
        is_own = process.uids().real == os.getuid()
        return is_own and os.getsid(process.pid) == process.pid and process.ppid() in ancestors
    return False


async def _end(stray: ProcessIdentity, number: signal.Signals, grace_s: float) -> bool:
    """Signal a process and its group, and return whether it ended within `grace_s`."""
    if is_alive(stray):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(stray.pid, number)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            while is_alive(stray):  # noqa: ASYNC110 - there is no event for the exit of another process's child
                await asyncio.sleep(_POLL_S)
    return not is_alive(stray)
