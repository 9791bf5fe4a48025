"""What replacing a VM takes, on real guests, each time beside the bare QEMU command that boots the same guest."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from scripts.lib.bench import bare
from scripts.lib.bench.watch import EventWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from scripts.lib.chaos.versions import Versions
    from scripts.lib.host import Host

POOL: Final = "small"
WARM: Final = 2
PERIOD_S: Final = 1.0
TIMEOUT_S: Final = 1.0
FAILURES: Final = 3
BUDGET_S: Final = PERIOD_S * FAILURES + TIMEOUT_S
"""What a hung VM is given: questions at their period, and the last one's time to be answered."""
PROBE: Final = f"""
[[pools.{{pool}}.probes]]
kind = "agent"
period_s = {PERIOD_S}
timeout_s = {TIMEOUT_S}
failures = {FAILURES}
"""


@dataclass(slots=True)
class Taken:
    """Seconds taken, one of each kind per trial."""

    notice_s: list[float] = field(default_factory=list)
    replaced_s: list[float] = field(default_factory=list)
    bare_s: list[float] = field(default_factory=list)
    hang_noticed_s: list[float] = field(default_factory=list)
    hang_replaced_s: list[float] = field(default_factory=list)


async def assign_new_version(host: Host, versions: Versions) -> None:
    """Roll a version through the pool that no VM failed yet: the third failure of one would be answered slower."""
    version = await versions.push_good()
    host.assign(POOL, version.reference, warm=WARM, probes=PROBE)
    await host.until_warm(WARM, image=version.digest)


async def replace(host: Host, versions: Versions, *, kills: int, hangs: int) -> Taken:
    """Kill VMs, hang VMs and boot bare ones in turns."""
    taken = Taken()
    trials = [signal.SIGKILL] * kills
    for number in range(hangs):
        trials.insert(number * max(1, kills // max(1, hangs)) * 2 + 1, signal.SIGSTOP)
    for number, trial in enumerate(trials):
        if number % 2 == 0:
            await assign_new_version(host, versions)
        await _bare(host, taken)
        noticed_s, replaced_s = await _harm(host, trial)
        if trial is signal.SIGKILL:
            taken.notice_s.append(noticed_s)
            taken.replaced_s.append(replaced_s)
        else:
            taken.hang_noticed_s.append(noticed_s)
            taken.hang_replaced_s.append(replaced_s)
    return taken


async def _bare(host: Host, taken: Taken) -> None:
    name = (await host.until_warm(WARM))[0]
    directory = host.data_dir / "vms" / name
    taken.bare_s.append(await bare.boot_s(host.vm_pid(name), name, directory, host.directory / "bare"))


async def _harm(host: Host, number: signal.Signals) -> tuple[float, float]:
    """Send a VM a signal; return the seconds until its failure was told, and until another was ready."""
    name = (await host.until_warm(WARM))[0]
    pid = host.vm_pid(name)
    async with EventWatch(host) as watch:
        began_s = time.monotonic()
        os.kill(pid, number)
        failed = await watch.first(_is("vm-failed", vm=name), since_s=began_s)
        ready = await watch.first(_is("vm-ready"), since_s=began_s)
    return failed.at_s - began_s, ready.at_s - began_s


def _is(kind: str, **about: str) -> Callable[[dict[str, Any]], bool]:
    return lambda event: event["kind"] == kind and all(event.get(key) == value for key, value in about.items())
