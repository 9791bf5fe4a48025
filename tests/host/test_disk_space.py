"""Space on the data volume, above and below its watermarks."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from agent.config import Config, ImagesConfig
from agent.host.disk_space import DiskUsage, VolumeSpace, measure_disk, measure_volume, purgeable_bytes

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30


@pytest.mark.parametrize(
    ("used_percent", "excess_percent"),
    [(0, 0), (79, 0), (85, 0), (90, 0), (91, 11), (100, 20)],
)
def test_disk_excess_reaches_down_to_the_low_watermark(
    used_percent: int, excess_percent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = VolumeSpace(100 * GIB, (100 - used_percent) * GIB)
    monkeypatch.setattr("agent.host.disk_space.measure_volume", lambda _: space)
    found = measure_disk(tmp_path, Config(data_dir=tmp_path))
    assert found == DiskUsage(space.total_bytes, space.free_bytes, found.reserve_bytes, excess_percent * GIB)


def test_low_watermark_above_the_high_one_is_refused() -> None:
    with pytest.raises(ValueError, match="low_watermark_percent"):
        ImagesConfig(high_watermark_percent=50, low_watermark_percent=60)


def test_volume_space_excludes_blocks_reserved_for_root(tmp_path: Path) -> None:
    seen = measure_volume(tmp_path / "not" / "there" / "yet")
    figures = os.statvfs(tmp_path)
    assert seen.total_bytes == figures.f_blocks * figures.f_frsize
    assert 0 < seen.free_bytes <= figures.f_bfree * figures.f_frsize
    assert (purgeable_bytes(tmp_path) is None) == (sys.platform != "darwin")
