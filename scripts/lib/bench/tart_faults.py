"""Every fault of `tart` in turn, each on its own simulated Mac with one warm VM. The guest of that VM is killed."""

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
"""Time for the agent to recover or to report a cause: a command's timeout and consecutive probe failures."""
RECOVER_S: Final = 60.0
COMMAND_S: Final = 2.0
HANG: Final = {"hang": True}
IGNORE_TERM: Final = {"hang_on_term": True}
GARBAGE: Final = {"garbage": True}
CAUSE_EVENTS: Final = frozenset({"vm-failed", "vm-teardown-failed", "vm-resume-failed", "stray-removal-failed"})
FAULTS: Final = (
    Fault("clone hangs", {"clone": HANG}, "did not end in 2 s"),
    Fault("clone hangs on TERM too", {"clone": IGNORE_TERM}, "did not end in 2 s"),
    Fault("clone is slow", {"clone": {"slow_s": 1}}),
    Fault("clone prints garbage and does nothing", {"clone": GARBAGE}, "reported success for"),
    Fault("clone is half done", {"clone": {"half_done": True}}, "No space left"),
    Fault("clone dies before it copies", {"clone": {"die_at": "locked"}}, "SIGKILL"),
    Fault("clone dies while it copies", {"clone": {"die_at": "copied nvram.bin"}}, "SIGKILL"),
    Fault("clone dies when it is done", {"clone": {"die_at": "moved"}}, "SIGKILL"),
    Fault("set hangs", {"set": HANG}, "did not end in 2 s"),
    Fault("set prints garbage and does nothing", {"set": GARBAGE}, "reported success for"),
    Fault("run hangs", {"run": HANG}, "has not started the VM in 2 s"),
    Fault("run hangs on TERM too", {"run": IGNORE_TERM}, "has not started the VM in 2 s"),
    Fault("run prints garbage and ends", {"run": GARBAGE}, "ended immediately"),
    Fault("run dies with the lock", {"run": {"die_at": "locked"}}, "ended immediately"),
    Fault("run dies with a slot", {"run": {"die_at": "slot taken"}}, "ended immediately"),
    Fault("run dies when it has started", {"run": {"die_at": "listening"}}, "ended"),
    Fault("the guest dies, run exits with 0", {"run": {"guest_error_s": 0.2}}, "due to error"),
    Fault("the network is lost, run exits with 0", {"run": {"network_loss_s": 0.2}}, "network attachment"),
    Fault("slots leak", {"run": {"leak": True}}, "of its 2 run"),
    Fault("exec hangs", {"exec": HANG}, "did not answer"),
    Fault("exec hangs on TERM too", {"exec": IGNORE_TERM}, "did not answer"),
    Fault("exec prints garbage", {"exec": GARBAGE}, "tart exec"),
    Fault("every query hangs", {"exec": HANG, "--version": HANG, "ip": HANG}, "did not end in"),
    Fault("ip hangs", {"ip": HANG}, "did not end in"),
    Fault("ip prints garbage", {"ip": GARBAGE}, "no address yet"),
    Fault("delete hangs", {"delete": HANG}),
    Fault("delete fails", {"delete": {"fail": "The operation could not be completed."}}),
    Fault("stop hangs on TERM too", {"stop": IGNORE_TERM}),
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
                await _leak_slot(host, backend, fault)
                (victim,) = await host.wait_until_warm(1)
            backend.set_faults(**fault.commands)
            for guest in backend.home.guests(victim):
                with contextlib.suppress(psutil.NoSuchProcess):
                    guest.kill()
            await _measure_fault(host, backend, victim, result)
        result.hung = _count_hung_commands(backend)
        result.left = await host.remove_all_vms()
    finally:
        await host.close()
    return result


async def _measure_fault(host: Host, backend: TartBackend, victim: str, result: FaultResult) -> None:
    """Wait until the host recovers or reports a cause. After a cause, remove the fault and wait until it recovers."""
    began_s = time.monotonic()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CAUSE_S):
            while not (result.reported_cause and result.fault.cause in result.reported_cause):
                if not result.fault.cause and await _is_replaced(host, victim):
                    result.recovered_during_s = time.monotonic() - began_s
                    return
                result.reported_cause = _find_cause(host, victim, result.fault.cause) or result.reported_cause
                await asyncio.sleep(PERIOD_S * 5)
    if result.reported_cause:
        result.reported_s = time.monotonic() - began_s
    backend.clear_faults()
    began_s = time.monotonic()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(RECOVER_S):
            while result.recovered_after_s is None:
                await asyncio.sleep(PERIOD_S * 5)
                if await _is_replaced(host, victim):
                    result.recovered_after_s = time.monotonic() - began_s


async def _leak_slot(host: Host, backend: TartBackend, fault: Fault) -> None:
    """Kill VMs until one of the two slots has leaked. The next VM uses the other slot."""
    backend.set_faults(**fault.commands)
    for _ in range(2):
        before = (await host.wait_until_warm(1))[0]
        for guest in backend.home.guests(before):
            with contextlib.suppress(psutil.NoSuchProcess):
                guest.kill()
        await host.wait_until_warm(1, without=before)
        if backend.home.leaked():
            return


async def _is_replaced(host: Host, victim: str) -> bool:
    vms = (await host.get("/v1/vms"))["vms"]
    return [vm["state"] for vm in vms] == ["ready"] and vms[0]["name"] != victim


def _find_cause(host: Host, victim: str, wanted: str) -> str:
    """Return the latest cause with the `wanted` text, else the latest cause, of a VM other than the killed one."""
    causes = [
        str(line.get("detail", ""))
        for line in host.read_log()
        if line["event"] in CAUSE_EVENTS | {"probe-not-passed"} and line.get("vm") != victim
    ]
    return next((text for text in reversed(causes) if wanted and wanted in text), causes[-1] if causes else "")


def _count_hung_commands(backend: TartBackend) -> int:
    """Return how many old commands still run, except `tart run` of existing VMs."""
    running = {process.pid for found in backend.processes().values() for process in found}
    old = [call for call in backend.home.calls() if time.time() - call["at_s"] > COMMAND_S + 6]
    return sum(psutil.pid_exists(call["pid"]) and call["pid"] not in running for call in old)
