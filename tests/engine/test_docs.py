"""docs/engine.md agrees with the code: its rules are the planner's, in order, and every test it names is there."""

from __future__ import annotations

import re
from pathlib import Path

from agent.domain.plan import RULES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")


def test_the_rules_are_those_of_the_planner_in_their_order() -> None:
    table = PAGE.split("| rule | what it calls for |\n|---|---|\n")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == [rule.__name__ for rule in RULES]


def test_every_test_that_holds_a_promise_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) > 20
    for file, test in named:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert not test or re.search(rf"^(?:async )?def {test}\(", source, re.MULTILINE), f"{file}::{test}"
