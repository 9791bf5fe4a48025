"""docs/mac-contracts.md: it lists every quirk that a simulator or driver cites, and docs/promises.md has its tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "mac-contracts.md").read_text(encoding="utf-8")
INDEX = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
# The times of VMs: the drivers read none, so there is nothing to test.
UNTESTED = {"T13"}


def listed_in(page: str, letter: str) -> set[str]:
    """Return the numbers of quirks, of Tart (T1) or Anka (A1), that have a table row in a page."""
    return set(re.findall(rf"^\| ({letter}\d+) \|", page, re.MULTILINE))


def cited_in(*folders: Path) -> set[str]:
    """Return the numbers of quirks, of Tart and Anka alike, that source text cites."""
    texts = [path.read_text(encoding="utf-8") for folder in folders for path in sorted(folder.rglob("*.py"))]
    return {number for text in texts for number in re.findall(r"\b([AT][1-9]\d?)\b", text)}


@pytest.mark.parametrize("letter", ["A", "T"])
def test_every_cited_quirk_is_listed(letter: str) -> None:
    agent = ROOT / "agent"
    drivers = (agent / "anka", agent / "images", agent / "hypervisors" / "anka", agent / "hypervisors" / "tart")
    cited = {number for number in cited_in(ROOT / "tests" / "simulators", *drivers) if number[0] == letter}
    assert len(cited) > 10, "the expression finds none"
    assert cited - listed_in(PAGE, letter) == set()


@pytest.mark.parametrize("letter", ["A", "T"])
def test_every_quirk_has_a_test(letter: str) -> None:
    assert listed_in(PAGE, letter) - UNTESTED == listed_in(INDEX, letter)
