"""Every fault of `anka` in turn, each on its own simulated Mac with one warm VM that the agent must replace."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

from scripts.lib.anka_backend import AnkaBackend
from scripts.lib.bench.fault_result import PERIOD_S, PROBES, Fault, FaultResult, poll_livez
from scripts.lib.host import Host

if TYPE_CHECKING:
    from pathlib import Path

POOL: Final = "mac"
CAUSE_S: Final = 90.0
"""More than the longest timeout of a command: `anka pull --check-download-size` has 60 s."""
RECOVER_S: Final = 150.0
COMMAND_S: Final = 1.0
START_S: Final = 2.0
OUTLIVED_S: Final = 30.0
WARM_VM: Final = "the warm VM"
"""Placeholder for its name in the list of VMs that a listing omits."""
HANG: Final = {"hang": True}
IGNORE_TERM: Final = {"hang": True, "ignore_term": True}
GARBAGE: Final = {"garbage": True}
FALSE_SUCCESS: Final = {"lie": True}
FAULTS: Final = (
    Fault("list hangs", {"list": HANG}, "did not end in 1 s", by="observe"),
    Fault("list hangs on TERM too", {"list": IGNORE_TERM}, "did not end in 1 s", by="observe"),
    Fault("list prints garbage", {"list": GARBAGE}, "without a JSON reply", by="observe"),
    Fault("list answers {}", {"list": {"empty_body": True}}, "instead of a list", by="observe"),
    Fault("list fails", {"list": {"fail": "internal error"}}, "internal error", by="observe"),
    Fault("list omits the VM that runs, twice", {"list": {"omit": [WARM_VM], "times": 2}}, by="observe"),
    Fault("list invents two running VMs", {"list": {"invent": ["theirs-1", "theirs-2"]}}, "0 of 1 warm"),
    Fault("clone hangs", {"clone": HANG}, "did not end in 2 s"),
    Fault("clone hangs on TERM too", {"clone": IGNORE_TERM}, "did not end in 2 s"),
    Fault("clone prints garbage and does nothing", {"clone": GARBAGE}, "without a JSON reply"),
    Fault("clone is half done", {"clone": {"half": True}}, "status 74"),
    Fault("clone dies half-way", {"clone": {"die_at": 1}}, "exit code -9"),
    Fault("clone dies when it is done", {"clone": {"die_at": 2}}, "exit code -9"),
    Fault("clone reports success and does nothing", {"clone": FALSE_SUCCESS}, "not found"),
    Fault("modify hangs", {"modify": HANG}, "did not end in 1 s"),
    Fault("modify dies", {"modify": {"die_at": 1}}, "exit code -9"),
    Fault("start hangs", {"start": HANG}, "did not end in 2 s"),
    Fault("start hangs on TERM too", {"start": IGNORE_TERM}, "did not end in 2 s"),
    Fault("start finds no slot", {"start": {"fail": "maximum number of running instances exceeded"}}, "a slot leaked"),
    Fault("start fails, but the VM runs", {"start": {"half": True}}, "No child processes"),
    Fault("start dies before the VM runs", {"start": {"die_at": 1}}, "exit code -9"),
    Fault("start dies when the VM runs", {"start": {"die_at": 2}}, "exit code -9"),
    Fault("start reports success and does nothing", {"start": FALSE_SUCCESS}, "it does not run"),
    Fault("show hangs", {"show": HANG}, "did not end in 1 s"),
    Fault("show prints garbage", {"show": GARBAGE}, "without a JSON reply"),
    Fault("run hangs", {"run": HANG}, "did not answer", by="observe"),
    Fault("run hangs on TERM too", {"run": IGNORE_TERM}, "did not answer", by="observe"),
    Fault("stop hangs", {"stop": HANG}),
    Fault("stop hangs on TERM too", {"stop": IGNORE_TERM}),
    Fault("stop reports success and does nothing", {"stop": FALSE_SUCCESS}),
    Fault("stop leaks a slot", {"stop": {"leak_slot": True, "times": 1}}),
    Fault("delete hangs", {"delete": HANG}, "did not end in 1 s"),
    Fault("delete hangs on TERM too", {"delete": IGNORE_TERM}, "did not end in 1 s"),
    Fault("delete reports success and does nothing", {"delete": FALSE_SUCCESS}, "still listed"),
    Fault("pull fails half-way", {"pull": {"break_at": 1}}, "Input/output error", by="pull"),
    Fault("pull reports success and does nothing", {"pull": FALSE_SUCCESS}, "not here", by="pull"),
    Fault("pull dies", {"pull": {"die_at": 1}}, "exit code -9", by="pull"),
    Fault("pull stalls", {"pull": {"stall": True}}, "printed no progress for 2 s", by="pull"),
    Fault("pull hangs before it begins", {"pull": HANG}, "did not end in", by="pull"),
    Fault("everything takes 0.4 s more", {"*": {"slow_s": 0.4}}),
    Fault("everything hangs", {"*": HANG}, "did not end in 1 s", by="observe"),
)


async def try_fault(fault: Fault, directory: Path) -> FaultResult:
    """Run one fault on a host of its own."""
    backend = AnkaBackend(directory, timeout_s=COMMAND_S, start_timeout_s=START_S, pull_silence_s=2.0)
    host, result = Host(directory, backend), FaultResult(fault)
    try:
        (reference,) = (await backend.make_images(host, ("0",))).values()
        host.assign(POOL, reference, warm=1, probes=PROBES)
        await host.start()
        await host.wait_until_warm(1)
        async with poll_livez(host, result):
            await _measure_fault(fault, host, backend, result)
        old = (tool for tool in backend.tool_processes() if time.time() - tool.create_time() > OUTLIVED_S)
        result.hung = sum(1 for _ in old)
        result.left = await host.remove_all_vms()
    finally:
        await host.close()
    return result


async def _measure_fault(fault: Fault, host: Host, backend: AnkaBackend, result: FaultResult) -> None:
    """Trigger one fault, wait for its cause if one is expected, and wait until the host recovers."""
    since: int = (await host.get("/v1/events"))["last"]
    (victim,) = await host.wait_until_warm(1)

    def is_warm_again(_: dict[str, Any], vms: list[dict[str, Any]]) -> bool:
        return [vm["state"] for vm in vms] == ["ready"] and (fault.by == "observe" or vms[0]["name"] != victim)

    began_s = time.monotonic()
    backend.set_faults(**_fill_in_name(fault, victim))
    await _trigger(fault, host, backend, victim)
    if fault.cause:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CAUSE_S):
                result.reported_cause = await _wait_for_cause(fault, host, since)
                result.reported_s = time.monotonic() - began_s
        backend.clear_faults()
        began_s = time.monotonic()
    elif fault.by == "observe":
        await asyncio.to_thread(backend.wait_for_faults_used)
    with contextlib.suppress(TimeoutError):
        await host.wait_until(is_warm_again, timeout_s=RECOVER_S)
        took_s = time.monotonic() - began_s
        result.recovered_during_s, result.recovered_after_s = (None, took_s) if fault.cause else (took_s, None)
    backend.clear_faults()


def _fill_in_name(fault: Fault, victim: str) -> dict[str, dict[str, Any]]:
    """Return the switches with `WARM_VM` replaced by the VM's name."""
    omit = {"omit": [victim]}
    return {
        command: {**switches, **(omit if switches.get("omit") == [WARM_VM] else {})}
        for command, switches in fault.commands.items()
    }


async def _trigger(fault: Fault, host: Host, backend: AnkaBackend, victim: str) -> None:
    if fault.by == "replace":
        await host.call("DELETE", f"/v1/vms/{victim}")
    elif fault.by == "pull":
        host.assign(POOL, backend.add_image("1"), warm=1, probes=PROBES)


async def _wait_for_cause(fault: Fault, host: Host, since: int) -> str:
    """Wait until a condition or an event reports the expected cause; return its text."""
    while True:
        conditions = (await host.get("/v1/host"))["conditions"]
        texts = [f"{one['type']}: {one['message']}" for one in conditions if one["problem"]]
        events = (await host.get(f"/v1/events?after={since}"))["events"]
        texts += [f"{event['kind']}: {event['detail']}" for event in events]
        if found := next((words for words in texts if fault.cause in words), ""):
            return found.replace(str(host.directory), "")
        await asyncio.sleep(PERIOD_S * 5)
