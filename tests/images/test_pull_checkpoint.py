"""Checkpoints of pulls that are damaged: what cannot be read counts as not finished."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent.images.pull_checkpoint import FILE_NAME, FinishedChunks, read_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "hearth-pull-1 sha256:x boot"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", FinishedChunks()),
        ("something else\n1\n", FinishedChunks()),
        (f"{HEADER}\n1\n2\n", FinishedChunks(frozenset({1, 2}))),
        (f"{HEADER}\n1\n2", FinishedChunks(frozenset({1}))),
        (f"{HEADER}\n1\n99\n-1\nx\n\u0663\n", FinishedChunks(frozenset({1}))),
        (f"{HEADER}\n{'9' * 5000}\n1\n", FinishedChunks(frozenset({1}))),
    ],
)
def test_damaged_line_is_not_a_finished_chunk(text: str, found: FinishedChunks, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(text, encoding="utf-8")
    assert read_checkpoint(tmp_path, "sha256:x", boot="boot", chunks=10) == found
