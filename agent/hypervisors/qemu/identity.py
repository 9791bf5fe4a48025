"""Making a VM that goes on from a saved memory one of its own time, and one that goes on from another's memory itself.

Only the guest can change what it holds in its memory. It does so by an executable it brings, `on-resume NAME MAC TIME`,
with fresh random bytes on standard input: it sets the clock, reseeds its random numbers, takes the host name and the
network address, and makes new SSH host keys. A guest may also keep it waiting at a port, where it is asked the same:
starting a program takes longer than all that this one does. Docs: docs/guest-images.md.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Final

from agent.hypervisors.contract import FanOutUnsupportedError, GuestError
from agent.hypervisors.qemu import layout
from agent.hypervisors.qemu.cmdline import mac_address
from agent.hypervisors.qemu.guest_agent import GuestRefusedError
from agent.hypervisors.qemu.sockets import connect

if TYPE_CHECKING:
    from agent.hypervisors.qemu.fleet import RunningVm

HOOK: Final = "/etc/hearth/on-resume"
SEED_BYTES: Final = 64
ANSWER_S: Final = 20.0
"""How long a guest that has just been woken may take over its first answer: 0.1 s on an idle machine."""
BECOME_S: Final = 60.0
"""How long its hook may take: 0.05 s."""
CLOCK_OFF_S: Final = 0.5
"""How wrong a clock may be after the hook has set it. The calls themselves take a part of that."""
SAID_LIMIT: Final = 500
WAITING: Final = b"waiting\n"
DONE: Final = b"done\n"


async def check_hook(vm: RunningVm) -> None:
    """Return when the guest can become another. Raises `FanOutUnsupportedError`, or `GuestError` if it says nothing."""
    found = await vm.agent.execute(("test", "-x", HOOK), timeout_s=ANSWER_S)
    if found.exit_code != 0:
        raise FanOutUnsupportedError(
            f"the guest of {vm.name} has no executable {HOOK}, so no other VM can start from its memory",
            remedy="add one to the image, or set use_templates to false for its pools",
        )


async def set_clock(vm: RunningVm) -> None:
    """Give a VM the time of now, to the second at least. Raises `GuestError`."""
    try:
        await vm.agent.set_clock(time.time_ns(), timeout_s=ANSWER_S)
    except GuestRefusedError:
        done = await vm.agent.execute(("date", "-s", f"@{time.time():.0f}"), timeout_s=ANSWER_S)
        if done.exit_code != 0:
            raise


async def become(vm: RunningVm) -> None:
    """Let a VM that was another until now become itself, in the time of now.

    Raises `GuestError`, with the hook's own words if it fails.
    """
    arguments, seed = (vm.name, mac_address(vm.name), str(time.time_ns())), secrets.token_bytes(SEED_BYTES)
    if vm.waiting:
        await _tell(vm, " ".join((*arguments, seed.hex())))
    else:
        await _run_hook(vm, arguments, seed)
    # A call for itself would be slower than the hook, and the clock of a guest on a busy host may have been set late.
    if abs(await vm.agent.clock_ns(timeout_s=ANSWER_S) - time.time_ns()) > CLOCK_OFF_S * 1e9:
        await set_clock(vm)


async def _run_hook(vm: RunningVm, arguments: tuple[str, ...], seed: bytes) -> None:
    done = await vm.agent.execute((HOOK, *arguments), timeout_s=BECOME_S, stdin=seed)
    if done.exit_code != 0:
        raise GuestError(f"{HOOK} in {vm.name} ended with {done.exit_code}: {_words(done.stderr or done.stdout)}")


async def _tell(vm: RunningVm, request: str) -> None:
    """Ask the hook that waits in the guest. It says so first, since only a write tells it that somebody is there.

    The guest's agent is woken beside it: its first answer takes as long, and is what comes next.
    """
    waking = asyncio.create_task(vm.agent.ping(timeout_s=ANSWER_S))
    try:
        async with asyncio.timeout(BECOME_S):
            reader, writer = await asyncio.open_unix_connection(sock=connect(vm.directory / layout.WAITER))
            try:
                writer.write(f"{request}\n".encode())
                while (said := await reader.readline()) == WAITING:
                    pass
            finally:
                writer.transport.abort()
        await waking
    except TimeoutError:
        raise GuestError(f"{HOOK} in {vm.name} waits, but did not answer in {BECOME_S:g} s") from None
    except (OSError, ValueError) as error:
        raise GuestError(f"{HOOK} in {vm.name} cannot be told: {error}") from error
    finally:
        waking.cancel()
        await asyncio.gather(waking, return_exceptions=True)
    if said != DONE:
        raise GuestError(f"{HOOK} in {vm.name} failed: {_words(said)}")


def _words(said: bytes) -> str:
    return said.decode(errors="replace").strip()[-SAID_LIMIT:] or "it said nothing"
