"""The table of what Mac hypervisors do names tests that exist, and every quirk that a simulator cites."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "mac-contracts.md").read_text()


def test_every_test_it_names_exists() -> None:
    defined = {name for path in TESTS.rglob("test_*.py") for name in re.findall(r"def (test_\w+)\(", path.read_text())}
    assert set(re.findall(r"`(test_\w+)`", PAGE)) - defined == set()


def test_every_quirk_that_a_simulator_cites_is_in_it() -> None:
    listed = set(re.findall(r"^\| ([AT]\d+) \|", PAGE, re.MULTILINE))
    cited = {
        number
        for path in (TESTS / "simulators").rglob("*.py")
        for number in re.findall(r"\b([AT]\d+)(?=[):])", path.read_text())
    }
    begun = {number[0] for number in listed}
    assert {number for number in cited if number[0] in begun} - listed == set()
