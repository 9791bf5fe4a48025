"""Ends transfers that an agent left behind which was killed: each runs in a session of its own and outlives it.

Two pulls at once corrupt each other (A19), so none may still run when the next agent begins one.
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

LOOK_S: Final = 30.0
TERM_GRACE_S: Final = 2.0
KILL_GRACE_S: Final = 5.0
_POLL_S: Final = 0.02
_ROOM_FOR_INTERPRETER: Final = 4


async def end_strays(program: str) -> None:
    """End every transfer by `program` that no agent waits for any more. Raises `AnkaError` when one does not end.

    To be called while this agent has no transfer under way.
    """
    try:
        async with asyncio.timeout(LOOK_S):
            strays = await asyncio.to_thread(find_strays, program)
    except TimeoutError:
        raise AnkaError(f"the host's processes could not be looked through in {LOOK_S:g} s") from None
    for stray in strays:
        log.warning("anka-stray-pull-ended", pid=stray.pid)
        if not (await _end(stray, signal.SIGTERM, TERM_GRACE_S) or await _end(stray, signal.SIGKILL, KILL_GRACE_S)):
            raise AnkaError(
                f"an `anka pull` of an agent that died, process {stray.pid}, cannot be ended",
                remedy="end it, or restart the host: a second pull beside it would corrupt both",
            )


def find_strays(program: str) -> tuple[ProcessIdentity, ...]:
    """Return this user's transfers whose agent is gone. Blocks: call it in a thread."""
    above = {parent.pid for parent in psutil.Process().parents()} | {1}
    return tuple(
        identity
        for process in psutil.process_iter(["cmdline"])
        if is_transfer(process.info["cmdline"] or (), program)
        and (identity := identify(process.pid)) is not None
        and _abandoned(process, above)
    )


def is_transfer(argv: Sequence[str], program: str) -> bool:
    """Whether these are the arguments of a pull as `Puller` starts it, by this very program."""
    for number, argument in enumerate(argv[:_ROOM_FOR_INTERPRETER]):
        if argument == program:
            asked = list(argv[number + 1 :])
            return asked[:2] == ["-j", "pull"] and asked[-5:-3] == ["--fetch-only", "--tag"]
    return False


def _abandoned(process: psutil.Process, above: Collection[int]) -> bool:
    """Whether a process of ours leads its session and was handed to what reaps orphans, which is above this agent too.

    One whose parent is anything else has somebody who waits for it: another agent, or a person.
    """
    with contextlib.suppress(psutil.Error, OSError):
        ours = process.uids().real == os.getuid()
        return ours and os.getsid(process.pid) == process.pid and process.ppid() in above
    return False


async def _end(stray: ProcessIdentity, number: signal.Signals, grace_s: float) -> bool:
    """Signal a process with its group and wait for its end. Returns whether it ended."""
    if is_alive(stray):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(stray.pid, number)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            while is_alive(stray):  # noqa: ASYNC110 - nobody's child has no event here
                await asyncio.sleep(_POLL_S)
    return not is_alive(stray)
