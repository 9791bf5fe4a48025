"""Metering: what happens is counted under the labels the documentation names."""

from __future__ import annotations

import asyncio
import sys

import pytest

from agent.engine.leases import DrainingError, NoVmFreeError
from agent.engine.metering import Metering
from agent.processes.command import Command, CommandRunner, CommandTimeoutError
from agent.telemetry.metrics import Metrics


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


async def test_every_command_is_timed_and_one_that_had_to_be_killed_is_counted() -> None:
    metrics = Metrics()
    runner = CommandRunner(Metering(metrics).command)
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
def test_a_request_without_a_lease_is_counted_by_how_it_ended(error: BaseException, outcome: str) -> None:
    metrics = Metrics()
    Metering(metrics).refusal("ci", error)
    assert sample(metrics, "hearth_leases_total", pool="ci", outcome=outcome) == 1
