"""Time to replace a real VM, measured side by side with the bare QEMU command that boots the same guest."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from scripts.lib.bench.bare_qemu import BareGuest
from scripts.lib.bench.event_watch import EventWatch

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
"""Time until a hung VM has failed: its probes at their period, and the timeout of the last one."""
PROBE: Final = f"""
[[pools.{{pool}}.probes]]
kind = "agent"
period_s = {PERIOD_S}
timeout_s = {TIMEOUT_S}
failures = {FAILURES}
"""


SETTLE_S: Final = 3.0
"""Wait after a template is saved, until the agent has observed it and its data is on disk."""
FAILURES_PER_VERSION: Final = 2
"""Failures of one version to which the agent reacts immediately; a breaker delays the reaction to later ones."""


@dataclass(slots=True)
class Durations:
    """Durations in seconds, one of each kind per trial. The floor is the duration of the bare command."""

    notice_s: list[float] = field(default_factory=list)
    replaced_s: list[float] = field(default_factory=list)
    floor_s: list[float] = field(default_factory=list)
    hang_noticed_s: list[float] = field(default_factory=list)
    hang_replaced_s: list[float] = field(default_factory=list)


async def measure_boots(host: Host, versions: Versions, *, kills: int, hangs: int) -> Durations:
    """Alternate between killing or hanging a VM and booting a bare one."""
    taken = Durations()
    for number, trial in enumerate(_trials(kills, hangs)):
        if number % FAILURES_PER_VERSION == 0:
            await _assign_new_version(host, versions, use_templates=False)
        taken.floor_s.append(await _bare_guest(host, (await host.wait_until_warm(WARM))[0]).boot_s())
        await _signal_vm(host, trial, taken)
    return taken


async def measure_resumes(host: Host, versions: Versions, *, kills: int) -> Durations:
    """Alternate between killing a VM and resuming a bare one. New VMs start from a template."""
    taken, saved = Durations(), host.directory / "saved"
    await _assign_new_version(host, versions, use_templates=True)
    guest = _bare_guest(host, (await host.wait_until_warm(WARM))[0])
    await guest.save(saved)
    for number in range(kills):
        if number and number % FAILURES_PER_VERSION == 0:
            await _assign_new_version(host, versions, use_templates=True)
        await _wait_for_template(host)
        taken.floor_s.append(await guest.resume_s(saved))
        await _signal_vm(host, signal.SIGKILL, taken)
    return taken


def _bare_guest(host: Host, booted: str) -> BareGuest:
    """Return a bare guest with the arguments of a booted VM."""
    return BareGuest(host.vm_pid(booted), booted, host.data_dir / "vms" / booted, host.directory / "bare")


def _trials(kills: int, hangs: int) -> list[signal.Signals]:
    """Return the signals to send: the hangs distributed among the kills."""
    trials = [signal.SIGKILL] * kills
    for number in range(hangs):
        trials.insert((number + 1) * kills // (hangs + 1) + number, signal.SIGSTOP)
    return trials


async def _assign_new_version(host: Host, versions: Versions, *, use_templates: bool) -> None:
    """Roll a version without failures through the pool: a breaker delays the reaction to a version's third failure."""
    version = await versions.push_good()
    host.assign(POOL, version.reference, warm=WARM, probes=PROBE, text=f"use_templates = {str(use_templates).lower()}")
    await host.wait_until_warm(WARM, image=version.digest)


async def _wait_for_template(host: Host) -> None:
    """Wait until a template is saved and no VM is paused for it."""
    serving = (await host.get("/v1/vms"))["vms"][0]["image"].replace(":", "-")
    folder = host.data_dir / "templates"

    def is_saved(*_: object) -> bool:
        return any(not path.name.endswith(".partial") for path in folder.glob(f"{serving}-*"))

    await host.wait_until(is_saved, timeout_s=120)
    await asyncio.sleep(SETTLE_S)


async def _signal_vm(host: Host, number: signal.Signals, taken: Durations) -> None:
    """Send a signal to a VM; record the seconds until its failure event and until another VM is ready."""
    name = (await host.wait_until_warm(WARM))[0]
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
