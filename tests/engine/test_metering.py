"""Metering: events are counted under the documented labels."""

from __future__ import annotations

import asyncio
import sys

import pytest

from agent.domain.events import Event, EventKind
from agent.engine.leases import DrainingError, NoVmFreeError
from agent.engine.metering import Metering
from agent.processes.command import Command, CommandRunner, CommandTimeoutError
from agent.telemetry.metrics import Metrics


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


async def test_commands_are_timed_and_timeouts_counted() -> None:
    metrics = Metrics()
    runner = CommandRunner(Metering(metrics).count_command)
    await runner.run(Command((sys.executable, "-c", ""), timeout_s=30))
    with pytest.raises(CommandTimeoutError):
        await runner.run(Command((sys.executable, "-c", "import time; time.sleep(600)"), timeout_s=0.3))

    tool = sys.executable.rpartition("/")[2]
    assert sample(metrics, "hearth_tool_command_duration_seconds_count", tool=tool, outcome="ok") == 1
    assert sample(metrics, "hearth_tool_command_duration_seconds_count", tool=tool, outcome="timeout") == 1
    assert sample(metrics, "hearth_tool_timeouts_total", tool=tool) == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(NoVmFreeError("none"), "timeout"), (asyncio.CancelledError(), "cancelled"), (DrainingError("no"), "refused")],
)
def test_refused_request_is_counted_by_its_end(error: BaseException, outcome: str) -> None:
    metrics = Metrics()
    Metering(metrics).count_refusal("ci", error)
    assert sample(metrics, "hearth_leases_total", pool="ci", outcome=outcome) == 1


E = EventKind


@pytest.mark.parametrize(
    ("events", "measured"),
    [
        ([(E.VM_CREATING, 0), (E.VM_STARTING, 1), (E.VM_READY, 5)], {"boot ok": 4, "ready ok": 5, "clone ok": 0.5}),
        ([(E.VM_CREATING, 0), (E.VM_FAILED, 2)], {"clone failed": 2, "ready failed": 2}),
        (
            [(E.VM_CREATING, 0), (E.VM_STARTING, 1), (E.VM_FAILED, 9)],
            {"clone ok": 0.5, "boot failed": 8, "ready failed": 9},
        ),
        (
            [(E.VM_SUSPENDING, 0), (E.VM_STANDBY, 3), (E.VM_RESUMING, 9), (E.VM_READY, 10)],
            {"suspend ok": 0.5, "resume ok": 1},
        ),
        ([(E.VM_SUSPENDING, 0), (E.VM_FAILED, 3)], {"suspend failed": 3}),
        ([(E.VM_RESUMING, 0), (E.VM_RESUME_FAILED, 2)], {"resume failed": 2}),
        ([(E.VM_TEARDOWN_FAILED, 0), (E.VM_GONE, 1)], {"teardown failed": 0.5, "teardown ok": 0.5}),
        ([(E.VM_READY, 7), (E.VM_FAILED, 8)], {}),
    ],
)  # fmt: skip
def test_operations_of_a_vm_are_measured(events: list[tuple[EventKind, float]], measured: dict[str, float]) -> None:
    """Ends that have an event of their own bring their duration: half a second here."""
    metrics = Metrics()
    Metering(metrics).count(
        tuple(Event(kind, at_s, vm="v", pool="ci", cause="exited", duration_s=0.5) for kind, at_s in events)
    )
    found = {}
    for name in ("clone", "boot", "ready", "suspend", "resume", "teardown"):
        for outcome in ("ok", "failed"):
            total = sample(metrics, f"hearth_vm_{name}_duration_seconds_sum", pool="ci", outcome=outcome)
            if total is not None:
                found[f"{name} {outcome}"] = total
    assert found == measured


def test_strays_count_as_orphans_and_failed_removals_as_leaks() -> None:
    metrics = Metrics()
    Metering(metrics).count((Event(E.STRAY_REMOVED, 0.0, vm="v"), Event(E.STRAY_REMOVAL_FAILED, 0.0, vm="w")))
    assert sample(metrics, "hearth_vms_orphaned_total") == 1
    assert sample(metrics, "hearth_vms_leaked_total") == 1
