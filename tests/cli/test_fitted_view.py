"""A live view fits its terminal for any content and any size."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from agent.cli.fitted_view import FittedView, allocate_lines
from agent.cli.tables import status_sections
from agent.cli.top import compute_rates
from agent.cli.usage_tables import usage_sections
from tests.cli.test_tables import VM, host

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
TROUBLE = {"type": "DiskPressure", "status": "true", "problem": True, "message": "free some " * 20, "since": None}


def drawn(sections: list[Any], width: int, height: int) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, height=height).print(FittedView(sections), end="")
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [24, 40, 60, 80, 200])
@pytest.mark.parametrize("height", [2, 6, 12, 24, 100])
@pytest.mark.parametrize("count", [0, 2, 60])
def test_view_fits_terminal(width: int, height: int, count: int) -> None:
    sections = status_sections(host(conditions=[TROUBLE]), [VM] * count, NOW, width, one_line=True)
    lines = drawn(sections, width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    if height >= 12:
        assert "DiskPressure" in "".join(lines)
        assert any("r2s4t" in line for line in lines) is (count > 0)


def test_omitted_lines_are_counted() -> None:
    sections = status_sections(host(conditions=[]), [VM] * 60, NOW, 80, one_line=True)
    lines = drawn(sections, 80, 20)
    assert len(lines) == 20
    shown = sum("01jx4c8h2m9v3k5n7p1q0r2s4t" in line for line in lines)
    assert f"… {60 - shown} more" in lines


@pytest.mark.parametrize(
    ("lengths", "height", "given"),
    [
        ([3, 2, 10], 20, [3, 2, 10]),
        ([3, 2, 10], 10, [3, 2, 5]),
        ([3, 9, 10], 10, [3, 4, 3]),
        ([3, 2, 10], 5, [2, 2, 1]),
        ([3, 2, 10], 0, [0, 0, 0]),
    ],
)
def test_longest_section_is_shortened_first(lengths: list[int], height: int, given: list[int]) -> None:
    assert allocate_lines(lengths, height) == given


def usage(at: str, busy_s: float, **cpu_s: float) -> Any:
    vm = {"pool": "small", "state": "ready", "cpus": 2, "memory_mib": 512, "resident_bytes": 300 << 20}
    machine = {"cpus": 4, "cpu_busy_s": busy_s, "load_1m": 1.5, "memory_total_bytes": 8 << 30,
               "memory_available_bytes": 2 << 30}  # fmt: skip
    return {"at": at, "host": machine, "vms": [{**vm, "name": name, "cpu_s": taken} for name, taken in cpu_s.items()]}


def test_top_shows_processor_shares_busiest_first() -> None:
    now = compute_rates(
        usage("2026-11-23T12:00:00Z", 100.0, a=5.0, b=7.0), usage("2026-11-23T12:00:02Z", 104.0, a=5.1, b=10.0, new=3.0)
    )
    assert [(vm["name"], vm["cpu_percent"]) for vm in now["vms"]] == [("b", 150.0), ("a", 5.0), ("new", 0.0)]
    assert now["host"]["cpu_percent"] == 200.0
    for width in (30, 60, 100):
        lines = drawn(usage_sections(now, width), width, 20)
        assert max(map(len, lines)) <= width
        assert "150 %" in "".join(lines)
    assert "6.00 GiB of 8.00 GiB" in "".join(lines)
