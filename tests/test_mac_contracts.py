"""The table of what Mac hypervisors do names tests that exist, and every quirk that a simulator cites."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "mac-contracts.md").read_text()


def test_every_test_it_names_exists() -> None:
    defined = {name for path in TESTS.rglob("test_*.py") for name in re.findall(r"def (test_\w+)\(", path.read_text())}
    assert set(re.findall(r"`(test_\w+)`", PAGE)) - defined == set()


def numbers_in(*places: Path) -> set[str]:
    """Return the numbers of quirks, of Tart (T1) and Anka (A1) alike, that source text cites."""
    texts = [path.read_text() for place in places for path in sorted(place.rglob("*.py"))]
    return {number for text in texts for number in re.findall(r"\b([AT][1-9]\d?)\b", text)}


@pytest.mark.parametrize("letter", ["A", "T"])
def test_every_quirk_that_a_simulator_or_a_driver_cites_is_in_it(letter: str) -> None:
    listed = set(re.findall(rf"^\| ({letter}\d+) \|", PAGE, re.MULTILINE))
    agent = TESTS.parent / "agent"
    drivers = (agent / "anka", agent / "images", agent / "hypervisors" / "anka", agent / "hypervisors" / "tart")
    cited = {number for number in numbers_in(TESTS / "simulators", *drivers) if number[0] == letter}
    assert len(cited) > 10, "the expression finds none"
    assert cited - listed == set()
