"""The log file under changes by other programs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from agent.telemetry.log_file import LogFile, Retention

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("change", ["moved", "removed", "replaced"])
def test_file_that_is_moved_or_removed_is_opened_again(tmp_path: Path, change: str) -> None:
    """As by `mv`, `rm` or another tool's rotation: lines to the old file would be lost, and it would grow unseen."""
    path = tmp_path / "hearth.log"
    handler = LogFile(path, Retention(1 << 20, 3600, 1 << 21, 3600), lost_lines=str)
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.warning("one")
    if change == "removed":
        path.unlink()
    else:
        path.rename(tmp_path / "elsewhere")
    if change == "replaced":
        path.write_text("")
    logger.warning("two")
    handler.close()
    assert path.read_text() == "two\n"
