"""docs/engine.md agrees with the code: its rules are the planner's, in order."""

from __future__ import annotations

import re
from pathlib import Path

from agent.domain.plan import RULES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")


def test_rules_table_matches_the_planner() -> None:
    table = PAGE.split("| rule | what it does |\n|---|---|\n")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == [rule.__name__ for rule in RULES]
