"""The data volume as the engine sees it, above its watermarks and below."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent.config import Config, ImagesConfig
from agent.host.facts import DiskFacts, measure_disk
from agent.host.space import Space

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30


@pytest.mark.parametrize(
    ("used_percent", "excess_percent"),
    [(0, 0), (79, 0), (85, 0), (90, 0), (91, 11), (100, 20)],
)
def test_the_excess_is_what_lies_above_the_low_watermark_once_the_high_one_is_passed(
    used_percent: int, excess_percent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = Space(100 * GIB, (100 - used_percent) * GIB)
    monkeypatch.setattr("agent.host.space.measure", lambda _: space)
    found = measure_disk(tmp_path, Config(data_dir=tmp_path))
    assert found == DiskFacts(space.total_bytes, space.free_bytes, found.reserve_bytes, excess_percent * GIB)


def test_a_low_watermark_above_the_high_one_is_refused() -> None:
    with pytest.raises(ValueError, match="low_watermark_percent"):
        ImagesConfig(high_watermark_percent=50, low_watermark_percent=60)
