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
    from pathlib import Path

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


FAILURES_A_VERSION: Final = 2
"""Failures of one version that are answered at once; later ones are answered slower, as they should be."""


@dataclass(slots=True)
class Taken:
    """Seconds taken, one of each kind per trial. The floor is the bare command's share of the work."""

    notice_s: list[float] = field(default_factory=list)
    replaced_s: list[float] = field(default_factory=list)
    floor_s: list[float] = field(default_factory=list)
    hang_noticed_s: list[float] = field(default_factory=list)
    hang_replaced_s: list[float] = field(default_factory=list)


async def by_boot(host: Host, versions: Versions, *, kills: int, hangs: int) -> Taken:
    """Kill VMs, hang VMs and boot bare ones in turns."""
    taken = Taken()
    for number, trial in enumerate(_trials(kills, hangs)):
        if number % FAILURES_A_VERSION == 0:
            await _assign_new_version(host, versions, fan_out=False)
        name = (await host.until_warm(WARM))[0]
        directory = host.data_dir / "vms" / name
        taken.floor_s.append(await bare.boot_s(host.vm_pid(name), name, directory, host.directory / "bare"))
        await _harm(host, trial, taken)
    return taken


async def by_resume(host: Host, versions: Versions, *, kills: int) -> Taken:
    """Kill VMs and resume bare ones in turns, where new VMs start from the memory of a proven one."""
    taken = Taken()
    for number in range(kills):
        if number % FAILURES_A_VERSION == 0:
            await _assign_new_version(host, versions, fan_out=True)
            await _use_one(host)
        template = await _template(host)
        twin = await _twin(host)
        taken.floor_s.append(await bare.resume_s(host.vm_pid(twin), twin, template, host.directory / "bare"))
        await _harm(host, signal.SIGKILL, taken, spare=twin)
    return taken


def _trials(kills: int, hangs: int) -> list[signal.Signals]:
    """Return the signals to send, the hangs spread among the kills."""
    trials = [signal.SIGKILL] * kills
    for number in range(hangs):
        trials.insert((number + 1) * kills // (hangs + 1) + number, signal.SIGSTOP)
    return trials


async def _assign_new_version(host: Host, versions: Versions, *, fan_out: bool) -> None:
    """Roll a version through the pool that no VM failed yet: the third failure of one would be answered slower."""
    version = await versions.push_good()
    host.assign(POOL, version.reference, warm=WARM, probes=PROBE, text=f"fan_out = {str(fan_out).lower()}")
    await host.until_warm(WARM, image=version.digest)


async def _use_one(host: Host) -> None:
    """Lease a VM and release it once the pool has a template: the one that follows starts from that."""
    await _template(host)
    lease = await host.call("POST", "/v1/leases", {"pool": POOL, "holder": "bench", "wait_s": 0})
    await host.call("DELETE", f"/v1/leases/{lease['id']}")
    await host.until_warm(WARM, without=lease["vm"])


async def _template(host: Host) -> Path:
    """Return the folder of the pool's template, once it is whole."""
    serving = (await host.get("/v1/vms"))["vms"][0]["image"].replace(":", "-")
    folder = host.data_dir / "templates"

    def found() -> list[Path]:
        return [path for path in folder.glob(f"{serving}-*") if not path.name.endswith(".partial")]

    await host.until(lambda *_: bool(found()), timeout_s=120)
    return found()[0]


async def _twin(host: Host) -> str:
    """Return a warm VM that came from a template, once there is one."""
    names = await host.until_warm(WARM)
    return next(name for name in names if (host.data_dir / "vms" / name / "base.qcow2").exists())


async def _harm(host: Host, number: signal.Signals, taken: Taken, *, spare: str = "") -> None:
    """Send a VM a signal; note the seconds until its failure was told, and until another was ready."""
    name = next(name for name in await host.until_warm(WARM) if name != spare)
    pid = host.vm_pid(name)
    async with EventWatch(host) as watch:
        began_s = time.monotonic()
        os.kill(pid, number)
        failed = await watch.first(_is("vm-failed", vm=name), since_s=began_s)
        ready = await watch.first(_is("vm-ready"), since_s=began_s)
    killed = number is signal.SIGKILL
    (taken.notice_s if killed else taken.hang_noticed_s).append(failed.at_s - began_s)
    (taken.replaced_s if killed else taken.hang_replaced_s).append(ready.at_s - began_s)


def _is(kind: str, **about: str) -> Callable[[dict[str, Any]], bool]:
    return lambda event: event["kind"] == kind and all(event.get(key) == value for key, value in about.items())
