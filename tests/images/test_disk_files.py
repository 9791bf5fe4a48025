"""Clones and holes on the file systems of this system, and on XFS if it can be mounted."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.images import disk_files
from agent.images.disk_files import HOLE_BYTES, clone_file, data_extents, make_hole
from tests.support.volumes import xfs

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20


@pytest.fixture(scope="module", params=["own", "xfs", "memory"])
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, bool]]:
    """A folder, and whether its file system is known to support clones: APFS and XFS do, tmpfs does not."""
    folder = tmp_path_factory.mktemp("volume")
    if request.param == "own":
        yield folder, sys.platform == "darwin"
    elif sys.platform != "linux":
        pytest.skip("APFS is this system's own")
    elif request.param == "xfs":
        with xfs(folder, mib=320) as mount:
            yield mount, True
    elif Path("/dev/shm").is_dir():
        with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
            yield Path(memory), False
    else:
        pytest.skip("there is no tmpfs")


def write(path: Path, size: int) -> Path:
    path.write_bytes(os.urandom(1 << 16) * (size >> 16))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


def free(folder: Path) -> int:
    seen = os.statvfs(folder)
    return seen.f_bfree * seen.f_frsize


def test_clone_is_equal_independent_and_takes_no_space(volume: tuple[Path, bool]) -> None:
    folder, clones = volume
    source, target = write(folder / "source", 16 * MIB), folder / "target"
    before = free(folder)
    made = clone_file(source, target)
    if not made:
        assert not clones
        assert not target.exists()
        return
    assert target.read_bytes() == source.read_bytes()
    if clones:
        assert before - free(folder) < 4 * MIB
    with target.open("r+b") as file:
        file.write(b"changed")
    assert source.read_bytes()[:7] != b"changed"
    target.unlink()


def test_clone_does_not_overwrite_and_reports_errors(volume: tuple[Path, bool]) -> None:
    folder, _ = volume
    source, target = write(folder / "full", MIB), folder / "there"
    target.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        clone_file(source, target)
    assert target.read_bytes() == b"mine"
    with pytest.raises(FileNotFoundError):
        clone_file(folder / "nothing", folder / "new")
    assert not (folder / "new").exists()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_clone_to_another_volume_is_declined(tmp_path: Path) -> None:
    source = write(tmp_path / "source", MIB)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        if Path(memory).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("it is the same one")
        assert not clone_file(source, Path(memory) / "target")
        assert os.listdir(memory) == []


@pytest.mark.parametrize(("offset", "size"), [(MIB, 8 * MIB), (MIB + 1000, 8 * MIB + 77), (5 * MIB + 10, 100)])
def test_hole_reads_as_zeros_and_frees_its_space(volume: tuple[Path, bool], offset: int, size: int) -> None:
    folder, _ = volume
    path = write(folder / f"disk-{offset}-{size}", 16 * MIB)
    before = path.read_bytes()
    blocks = path.stat().st_blocks
    with path.open("r+b") as file:
        make_hole(file.fileno(), offset, size)
        os.fsync(file.fileno())
    after = path.read_bytes()
    assert after == before[:offset] + bytes(size) + before[offset + size :]
    assert path.stat().st_size == 16 * MIB
    if size >= MIB:
        assert (blocks - path.stat().st_blocks) * 512 >= size - 2 * HOLE_BYTES
        with path.open("rb") as file:
            runs = list(data_extents(file.fileno(), 16 * MIB))
        assert runs[0][0] == 0
        assert runs[-1][1] == 16 * MIB
        assert sum(end - start for start, end in runs) <= 16 * MIB - size + 2 * HOLE_BYTES


def test_zeros_are_written_without_support_for_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_files, "_punch", lambda _descriptor, _start, end: (end, end))
    path = write(tmp_path / "disk", MIB)
    before = path.read_bytes()
    with path.open("r+b") as file:
        make_hole(file.fileno(), 1000, 500_000)
    assert path.read_bytes() == before[:1000] + bytes(500_000) + before[501_000:]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the error of fallocate(2)")
def test_hole_in_a_read_only_file_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "disk", MIB)
    with path.open("rb") as file, pytest.raises(OSError) as caught:  # noqa: PT011 - the error code is checked below
        make_hole(file.fileno(), 0, MIB)
    assert caught.value.errno == errno.EBADF
