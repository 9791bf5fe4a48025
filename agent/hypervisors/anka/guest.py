"""Commands in a guest by `anka run`, and its health by the smallest of them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from agent.hypervisors.contract import ExecResult, GuestError
from agent.processes.command import CommandTimeoutError

if TYPE_CHECKING:
    from agent.anka.command import Anka
    from agent.hypervisors.anka.fleet import RunningVm

DISCONNECTED: Final = 125
UNANSWERED: Final = (b"communication timeout", b"disconnected")
AGAIN_S: Final = 0.2


async def run_in_guest(anka: Anka, name: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
    """Run a command in a VM that is known to run. Raises `GuestError` when the guest does not answer in time.

    That of a hung tool is not to be told from that of a guest: `anka run` is silent in both.
    """
    try:
        result = await anka.run("run", name, *argv, timeout_s=timeout_s)
    except CommandTimeoutError:
        raise GuestError(f"the guest of {name} did not answer in {timeout_s:g} s") from None
    said = result.stderr.strip()
    if result.exit_code and said.startswith(b"-anka:") and any(words in said for words in UNANSWERED):
        raise GuestError(f"the guest of {name} did not answer: {said.decode(errors='replace')[-200:]}")
    return ExecResult(result.exit_code, result.stdout, result.stderr, truncated=result.truncated)


async def ping_guest(anka: Anka, vm: RunningVm, *, timeout_s: float) -> None:
    """Return when the guest runs a command. Raises `GuestError` when it does not in time."""
    deadline_s = time.monotonic() + timeout_s
    while (left_s := deadline_s - time.monotonic()) > 0:
        try:
            await run_in_guest(anka, vm.name, ("true",), timeout_s=left_s)
        except GuestError:
            await asyncio.sleep(min(AGAIN_S, max(0.0, deadline_s - time.monotonic())))
        else:
            return
        if vm.exited.is_set():
            break
    raise GuestError(f"the guest of {vm.name} did not answer in {timeout_s:g} s")
