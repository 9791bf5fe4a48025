"""README.md: short, with examples that are valid and links that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from agent.config import Assignment, Config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAX_LINES = 140


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= MAX_LINES


def test_readme_links_every_page_of_docs() -> None:
    pages = {str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")}
    assert pages - set(re.findall(r"\]\((docs/[^)#]+)\)", README)) == set()


@pytest.mark.parametrize("example", re.findall(r"```toml\n(.*?)```", README, re.DOTALL), ids=["host", "assignment"])
def test_examples_are_valid(example: str) -> None:
    document = tomllib.loads(example)
    (Assignment if "pools" in document else Config).model_validate(document)


def test_example_probes_use_forwarded_ports() -> None:
    assignment = tomllib.loads(re.findall(r"```toml\n(.*?)```", README, re.DOTALL)[1])
    (pool,) = Assignment.model_validate(assignment).specs()
    assert {probe.port for probe in pool.probes if probe.port} <= set(pool.ports)


def test_scripts_exist() -> None:
    named = re.findall(r"\bscripts/[\w-]+(?:\.sh)?", README)
    assert {"scripts/demo", "scripts/test"} <= set(named)
    assert [script for script in named if not (ROOT / script).is_file()] == []
