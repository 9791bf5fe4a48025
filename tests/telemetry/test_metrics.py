"""Names, units and help texts of the metrics, and independence of two instances."""

from __future__ import annotations

import re

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from agent.telemetry.metrics import Metrics


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_metrics_have_prefix_base_unit_and_help_text() -> None:
    families = list(text_string_to_metric_families(generate_latest(Metrics().registry).decode()))
    ours = [family for family in families if not family.name.startswith("process_")]
    assert ours
    for family in ours:
        assert re.fullmatch(r"hearth_[a-z_]+", family.name)
        assert family.documentation
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


def test_two_metrics_objects_are_independent() -> None:
    first, second = Metrics(), Metrics()
    first.adopted.inc()
    assert sample(second, "hearth_vms_adopted_total") == 0
