"""Every fault of `tart` in turn, each on a simulated Mac of its own with one warm VM, whose guest is killed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

import psutil

from scripts.lib.bench.fault_result import PERIOD_S, PROBES, Fault, FaultResult, poll_livez
from scripts.lib.host import Host
from scripts.lib.tart_backend import TartBackend

if TYPE_CHECKING:
    from pathlib import Path

CAUSE_S: Final = 20.0
"""How long the agent may take to recover or to tell a cause: a command's time, and failures in a row of its probes."""
RECOVER_S: Final = 60.0
COMMAND_S: Final = 2.0
HANG: Final = {"hang": True}
STUBBORN: Final = {"hang_on_term": True}
GARBAGE: Final = {"garbage": True}
CAUSE_EVENTS: Final = frozenset({"vm-failed", "vm-teardown-failed", "vm-resume-failed", "stray-removal-failed"})
FAULTS: Final = (
    Fault("clone hangs", {"clone": HANG}, "did not end in 2 s"),
    Fault("clone hangs on TERM too", {"clone": STUBBORN}, "did not end in 2 s"),
    Fault("clone is slow", {"clone": {"slow_s": 1}}),
    Fault("clone prints garbage and does nothing", {"clone": GARBAGE}, "said that it made"),
    Fault("clone is half done", {"clone": {"half_done": True}}, "No space left"),
    Fault("clone dies before it copies", {"clone": {"die_at": "locked"}}, "SIGKILL"),
    Fault("clone dies while it copies", {"clone": {"die_at": "copied nvram.bin"}}, "SIGKILL"),
    Fault("clone dies when it is done", {"clone": {"die_at": "moved"}}, "SIGKILL"),
    Fault("set hangs", {"set": HANG}, "did not end in 2 s"),
    Fault("set prints garbage and does nothing", {"set": GARBAGE}, "said that it changed"),
    Fault("run hangs", {"run": HANG}, "has not started the VM in 2 s"),
    Fault("run hangs on TERM too", {"run": STUBBORN}, "has not started the VM in 2 s"),
    Fault("run prints garbage and ends", {"run": GARBAGE}, "ended as soon as it was started"),
    Fault("run dies with the lock", {"run": {"die_at": "locked"}}, "ended as soon as it was started"),
    Fault("run dies with a slot", {"run": {"die_at": "slot taken"}}, "ended as soon as it was started"),
    Fault("run dies when it has started", {"run": {"die_at": "listening"}}, "ended"),
    Fault("the guest dies, run exits with 0", {"run": {"guest_error_s": 0.2}}, "due to error"),
    Fault("the network is lost, run exits with 0", {"run": {"network_loss_s": 0.2}}, "network attachment"),
    Fault("slots leak", {"run": {"leak": True}}, "of its 2 run"),
    Fault("exec hangs", {"exec": HANG}, "did not answer"),
    Fault("exec hangs on TERM too", {"exec": STUBBORN}, "did not answer"),
    Fault("exec prints garbage", {"exec": GARBAGE}, "tart exec"),
    Fault("every question hangs", {"exec": HANG, "--version": HANG, "ip": HANG}, "did not end in"),
    Fault("ip hangs", {"ip": HANG}, "did not end in"),
    Fault("ip prints garbage", {"ip": GARBAGE}, "no address yet"),
    Fault("delete hangs", {"delete": HANG}),
    Fault("delete fails", {"delete": {"fail": "The operation could not be completed."}}),
    Fault("stop hangs on TERM too", {"stop": STUBBORN}),
    Fault(
        "every command complains on stderr", {name: {"noise": True} for name in ("clone", "set", "run", "exec", "ip")}
    ),
    Fault("list omits and invents", {"list": {"omit": ["x"], "invent": ["hearth-small-01j00000000000000000000000"]}}),
)


async def try_fault(fault: Fault, directory: Path) -> FaultResult:
    """Run one fault on a host of its own."""
    backend = TartBackend(directory, command_timeout_s=COMMAND_S)
    host, result = Host(directory, backend), FaultResult(fault)
    try:
        images = await backend.make_images(host, ("1.0",))
        deadline = "startup_deadline_s = 6"
        host.assign("small", images["1.0"], warm=1, probes=PROBES)
        host.write_assignment(host.assignment.read_text().replace("startup_deadline_s = 120", deadline))
        await host.start()
        (victim,) = await host.wait_until_warm(1)
        async with poll_livez(host, result):
            if "leak" in fault.commands.get("run", {}):
                await _leak(host, backend, fault)
                (victim,) = await host.wait_until_warm(1)
            backend.set_faults(**fault.commands)
            for guest in backend.home.guests(victim):
                with contextlib.suppress(psutil.NoSuchProcess):
                    guest.kill()
            await _watch(host, backend, victim, result)
        result.hung = _still_there(backend)
        result.left = await host.remove_all_vms()
    finally:
        await host.close()
    return result


async def _watch(host: Host, backend: TartBackend, victim: str, result: FaultResult) -> None:
    """See it recover, or tell a cause; then switch the fault off and see it recover."""
    began_s = time.monotonic()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CAUSE_S):
            while not (result.reported_cause and result.fault.cause in result.reported_cause):
                if not result.fault.cause and await _warm(host, victim):
                    result.recovered_during_s = time.monotonic() - began_s
                    return
                result.reported_cause = _causes(host, victim, result.fault.cause) or result.reported_cause
                await asyncio.sleep(PERIOD_S * 5)
    if result.reported_cause:
        result.reported_s = time.monotonic() - began_s
    backend.clear_faults()
    began_s = time.monotonic()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(RECOVER_S):
            while result.recovered_after_s is None:
                await asyncio.sleep(PERIOD_S * 5)
                if await _warm(host, victim):
                    result.recovered_after_s = time.monotonic() - began_s


async def _leak(host: Host, backend: TartBackend, fault: Fault) -> None:
    """Have a slot of the two leaked by the VM that runs now; the next one takes the other."""
    backend.set_faults(**fault.commands)
    for _ in range(2):
        before = (await host.wait_until_warm(1))[0]
        for guest in backend.home.guests(before):
            with contextlib.suppress(psutil.NoSuchProcess):
                guest.kill()
        await host.wait_until_warm(1, without=before)
        if backend.home.leaked():
            return


async def _warm(host: Host, victim: str) -> bool:
    vms = (await host.get("/v1/vms"))["vms"]
    return [vm["state"] for vm in vms] == ["ready"] and vms[0]["name"] != victim


def _causes(host: Host, victim: str, wanted: str) -> str:
    """Return the latest cause that the agent told of a VM other than the one that was killed, a wanted one before."""
    told = [
        str(line.get("detail", ""))
        for line in host.read_log()
        if line["event"] in CAUSE_EVENTS | {"probe-not-passed"} and line.get("vm") != victim
    ]
    return next((text for text in reversed(told) if wanted and wanted in text), told[-1] if told else "")


def _still_there(backend: TartBackend) -> int:
    """Return how many commands, but for the runs of living VMs, have not ended."""
    running = {process.pid for found in backend.processes().values() for process in found}
    old = [call for call in backend.home.calls() if time.time() - call["at_s"] > COMMAND_S + 6]
    return sum(psutil.pid_exists(call["pid"]) and call["pid"] not in running for call in old)
