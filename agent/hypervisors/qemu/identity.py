"""Making a VM that goes on from a saved memory one of its own time, and one that goes on from another's memory itself.

Only the guest can change what it holds in its memory. It does so by an executable it brings, `on-resume NAME MAC`, with
fresh random bytes on standard input: it reseeds its random numbers, takes the host name and the network address, and
makes new SSH host keys. Docs: docs/hypervisors.md.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Final

from agent.hypervisors.contract import FanOutUnsupportedError, GuestError
from agent.hypervisors.qemu.cmdline import mac_address
from agent.hypervisors.qemu.guest_agent import GuestRefusedError

if TYPE_CHECKING:
    from agent.hypervisors.qemu.fleet import RunningVm

HOOK: Final = "/etc/hearth/on-resume"
SEED_BYTES: Final = 64
ANSWER_S: Final = 20.0
"""How long a guest that has just been woken may take over its first answer: 0.1 s on an idle machine."""
BECOME_S: Final = 60.0
"""How long its hook may take: 0.3 s."""
SAID_LIMIT: Final = 500


async def check_hook(vm: RunningVm) -> None:
    """Return when the guest can become another. Raises `FanOutUnsupportedError`, or `GuestError` if it says nothing."""
    found = await vm.agent.execute(("test", "-x", HOOK), timeout_s=ANSWER_S)
    if found.exit_code != 0:
        raise FanOutUnsupportedError(
            f"the guest of {vm.name} has no executable {HOOK}, so no other VM can start from its memory",
            remedy="add one to the image, or set fan_out to false for its pools",
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
    """Let a VM that was another until now become itself. Raises `GuestError` with the hook's own words if it fails."""
    argv = (HOOK, vm.name, mac_address(vm.name))
    done = await vm.agent.execute(argv, timeout_s=BECOME_S, stdin=secrets.token_bytes(SEED_BYTES))
    if done.exit_code != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[-SAID_LIMIT:]
        raise GuestError(f"{HOOK} in {vm.name} ended with {done.exit_code}: {said or 'it said nothing'}")
