"""docs/engine.md agrees with the code: it lists the rules of the planner in order, and every reset of a breaker."""

from __future__ import annotations

import re
from pathlib import Path

from agent.domain.plan import RULES
from agent.domain.record import RESETS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")


def test_rules_table_matches_the_planner() -> None:
    table = PAGE.split("| rule | what it does |\n|---|---|\n")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == [rule.__name__ for rule in RULES]


def test_every_fact_that_resets_a_breaker_is_listed() -> None:
    table = PAGE.split("| fact | resets the breaker of |\n|---|---|\n")[1].split("\n\n")[0]
    assert set(re.findall(r"`([A-Z]\w+)`", table)) == {fact.__name__ for fact in RESETS}
