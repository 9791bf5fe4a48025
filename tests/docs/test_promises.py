"""docs/promises.md, the index of promises: every test it names exists, and no other page names tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INDEX = ROOT / "docs" / "promises.md"
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
# A page may name a whole file of tests, such as one to run on a Mac, but no single test.
OTHER_PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").rglob("*.md")} - {INDEX})


def index_rows() -> list[str]:
    """Return the rows of the index's tables, without their headings."""
    lines = INDEX.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("| ") and not line.endswith("| tests |")]


def test_every_promise_names_a_test() -> None:
    rows = index_rows()
    assert len(rows) > 100
    assert [row for row in rows if not NAMED_TEST.search(row)] == []


def test_every_promise_is_listed_once() -> None:
    promises = [row.split(" | ")[0] for row in index_rows()]
    assert [promise for promise in promises if promises.count(promise) > 1] == []


@pytest.mark.parametrize("row", index_rows(), ids=lambda row: row.split(" | ")[0].strip("| ")[:40])
def test_tests_of_a_promise_exist(row: str) -> None:
    for file, test in NAMED_TEST.findall(row):
        assert (ROOT / file).is_file(), file
        source = (ROOT / file).read_text(encoding="utf-8")
        assert not test or re.search(rf"^(?:async )?def {test}\(", source, re.MULTILINE), f"{file}::{test}"


@pytest.mark.parametrize("page", OTHER_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_other_pages_name_existing_files_and_no_single_tests(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"`[^`\n]*\btest_\w+(?!\w*\.py)(?![\w./])`", text) == []
    assert [file for file, _ in NAMED_TEST.findall(text) if not (ROOT / file).is_file()] == []
