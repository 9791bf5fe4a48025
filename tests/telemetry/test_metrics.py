"""What a scrape sees: names, labels, outcomes; and that two agents in one process do not share figures."""

from __future__ import annotations

import asyncio
import re

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from agent.telemetry.metrics import Metrics


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_every_name_is_ours_with_a_base_unit_and_a_help_text() -> None:
    families = list(text_string_to_metric_families(generate_latest(Metrics().registry).decode()))
    ours = [family for family in families if not family.name.startswith("process_")]
    assert ours
    for family in ours:
        assert re.fullmatch(r"hearth_[a-z_]+", family.name)
        assert family.documentation
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


def test_timed_observes_the_duration_and_how_it_ended() -> None:
    metrics = Metrics()
    ticks = iter([10.0, 12.5])
    with metrics.timed(metrics.boot, clock=lambda: next(ticks), pool="small"):
        pass
    assert sample(metrics, "hearth_vm_boot_duration_seconds_sum", pool="small", outcome="ok") == 2.5
    assert sample(metrics, "hearth_vm_boot_duration_seconds_count", pool="small", outcome="ok") == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(ValueError(), "failed"), (TimeoutError(), "timeout"), (asyncio.CancelledError(), "cancelled")],
)
def test_timed_passes_the_error_on_and_names_the_outcome(error: BaseException, outcome: str) -> None:
    metrics = Metrics()
    with pytest.raises(type(error)), metrics.timed(metrics.pull):
        raise error
    assert sample(metrics, "hearth_image_pull_duration_seconds_count", outcome=outcome) == 1


def test_two_objects_share_nothing() -> None:
    one, two = Metrics(), Metrics()
    one.adopted.inc()
    assert sample(two, "hearth_vms_adopted_total") == 0
