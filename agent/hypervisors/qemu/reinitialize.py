"""The reinitialisation of a resumed VM: its clock, and if it started from a template, its identity.

Only the guest can change the contents of its memory. It does so with an executable that its image provides,
`on-resume NAME MAC TIME`, with fresh random bytes on standard input. The executable sets the clock, reseeds the random
number generator, sets host name and network address, and generates new SSH host keys. A guest may also keep the
executable running and waiting at a virtio-serial port, where it gets the same request: starting a program takes longer
than all its work. See docs/guest-images.md.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Final

from agent.hypervisors.contract import GuestError, TemplatesUnsupportedError
from agent.hypervisors.qemu import layout
from agent.hypervisors.qemu.cmdline import mac_address
from agent.hypervisors.qemu.guest_agent import GuestRefusedError
from agent.hypervisors.qemu.sockets import connect

if TYPE_CHECKING:
    from agent.hypervisors.qemu.running import QemuRunningVm

HOOK: Final = "/etc/hearth/on-resume"
SEED_BYTES: Final = 64
ANSWER_S: Final = 20.0
"""How long a guest that just resumed may take for its first answer: 0.1 s on an idle machine."""
HOOK_S: Final = 60.0
"""How long the hook may take: 0.05 s."""
CLOCK_ERROR_S: Final = 0.5
"""How wrong a clock may be after the hook has set it. The calls themselves take part of that time."""
OUTPUT_LIMIT: Final = 500
WAITING: Final = b"waiting\n"
DONE: Final = b"done\n"


async def require_hook(vm: QemuRunningVm) -> None:
    """Raise `TemplatesUnsupportedError` if the guest has no hook, `GuestError` if it does not answer."""
    found = await vm.agent.execute(("test", "-x", HOOK), timeout_s=ANSWER_S)
    if found.exit_code != 0:
        raise TemplatesUnsupportedError(
            f"the guest of {vm.name} has no executable {HOOK}, so no other VM can start from its snapshot",
            remedy="add one to the image, or set use_templates to false for its pools",
        )


async def set_clock(vm: QemuRunningVm) -> None:
    """Set a VM's clock to the current time, exact to the second. Raises `GuestError`."""
    try:
        await vm.agent.set_clock(time.time_ns(), timeout_s=ANSWER_S)
    except GuestRefusedError:
        done = await vm.agent.execute(("date", "-s", f"@{time.time():.0f}"), timeout_s=ANSWER_S)
        if done.exit_code != 0:
            raise


async def reinitialize(vm: QemuRunningVm) -> None:
    """Give a VM started from a template its own identity and the current time.

    Raises `GuestError`, with the hook's output if the hook fails.
    """
    arguments, seed = (vm.name, mac_address(vm.name), str(time.time_ns())), secrets.token_bytes(SEED_BYTES)
    if vm.is_hook_waiting:
        await _request_from_hook(vm, " ".join((*arguments, seed.hex())))
    else:
        await _run_hook(vm, arguments, seed)
    # Setting the clock by a call of its own would take longer than the hook, so it is set again only if it is wrong:
    # on a busy host the hook may have set it late.
    if abs(await vm.agent.clock_ns(timeout_s=ANSWER_S) - time.time_ns()) > CLOCK_ERROR_S * 1e9:
        await set_clock(vm)


async def _run_hook(vm: QemuRunningVm, arguments: tuple[str, ...], seed: bytes) -> None:
    done = await vm.agent.execute((HOOK, *arguments), timeout_s=HOOK_S, stdin=seed)
    if done.exit_code != 0:
        raise GuestError(f"{HOOK} in {vm.name} ended with {done.exit_code}: {_end_of(done.stderr or done.stdout)}")


async def _request_from_hook(vm: QemuRunningVm, request: str) -> None:
    """Send the request to the hook that waits in the guest, and wait for its answer.

    The hook writes `WAITING` first: only a write shows it whether a client is connected. The guest's agent is pinged
    concurrently: its first answer takes as long as the hook, and the next step needs it.
    """
    pinging = asyncio.create_task(vm.agent.ping(timeout_s=ANSWER_S))
    try:
        async with asyncio.timeout(HOOK_S):
            reader, writer = await asyncio.open_unix_connection(sock=connect(vm.directory / layout.RESUME_SOCKET))
            try:
                writer.write(f"{request}\n".encode())
                while (answer := await reader.readline()) == WAITING:
                    pass
            finally:
                writer.transport.abort()
        await pinging
    except TimeoutError:
        raise GuestError(f"{HOOK} in {vm.name} waits, but did not answer in {HOOK_S:g} s") from None
    except (OSError, ValueError) as error:
        raise GuestError(f"{HOOK} in {vm.name} cannot be reached: {error}") from error
    finally:
        pinging.cancel()
        await asyncio.gather(pinging, return_exceptions=True)
    if answer != DONE:
        raise GuestError(f"{HOOK} in {vm.name} failed: {_end_of(answer)}")


def _end_of(output: bytes) -> str:
    return output.decode(errors="replace").strip()[-OUTPUT_LIMIT:] or "no output"
