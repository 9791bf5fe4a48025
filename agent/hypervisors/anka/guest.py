"""Commands in a guest by `anka run`. A guest is healthy if it runs `true`."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from agent.hypervisors.captured_command import OUTPUT_LIMIT_BYTES, bounded_result
from agent.hypervisors.contract import GuestError
from agent.processes.command import CommandTimeoutError

if TYPE_CHECKING:
    from agent.anka.command import Anka
    from agent.hypervisors.anka.running import AnkaRunningVm
    from agent.hypervisors.contract import ExecResult

UNANSWERED: Final = (b"communication timeout", b"disconnected")
RETRY_S: Final = 0.2


async def run_in_guest(anka: Anka, name: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
    """Run a command in a running VM. Raises `GuestError` if the guest does not answer in time.

    A hung tool raises the same error: `anka run` prints nothing in either case.
    """
    try:
        result = await anka.run("run", name, *argv, timeout_s=timeout_s, output_limit_bytes=2 * OUTPUT_LIMIT_BYTES)
    except CommandTimeoutError:
        raise GuestError(f"the guest of {name} did not answer in {timeout_s:g} s") from None
    stderr = result.stderr.strip()
    if result.exit_code and stderr.startswith(b"-anka:") and any(words in stderr for words in UNANSWERED):
        raise GuestError(f"the guest of {name} did not answer: {stderr.decode(errors='replace')[-200:]}")
    return bounded_result(result.exit_code, result.stdout, result.stderr, truncated=result.truncated)


async def ping_guest(anka: Anka, vm: AnkaRunningVm, *, timeout_s: float) -> None:
    """Return when the guest runs a command. Raises `GuestError` if it does not in time."""
    deadline_s = time.monotonic() + timeout_s
    while (left_s := deadline_s - time.monotonic()) > 0:
        try:
            await run_in_guest(anka, vm.name, ("true",), timeout_s=left_s)
        except GuestError:
            await asyncio.sleep(min(RETRY_S, max(0.0, deadline_s - time.monotonic())))
        else:
            return
        if vm.exited.is_set():
            break
    raise GuestError(f"the guest of {vm.name} did not answer in {timeout_s:g} s")
