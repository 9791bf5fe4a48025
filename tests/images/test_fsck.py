"""Detection and repair of damaged images."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from agent.images.chunk_index import ChunkIndex
from tests.images.disks import MIB, push_layout
from tests.images.test_cli import hearth_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from pathlib import Path

    from agent.images.service import ImageService
    from tests.images.conftest import MakeService


@pytest.fixture
async def pulled(
    make_service: MakeService, tmp_path: Path, disk: Path, executor: Executor
) -> tuple[ImageService, str, Path]:
    digest = await push_layout(disk, tmp_path / "layout", executor)
    images = await make_service()
    await images.pull(f"oci-layout:{tmp_path}/layout:v1", digest)
    return images, digest, images.store.path(digest)


def overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(MIB)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte": (lambda folder: overwrite(folder / "disk.img", 3 * MIB + 70_000, b"!"), "chunk 3 of disk.img"),
    "a hole": (lambda folder: overwrite(folder / "disk.img", MIB, b"!"), "chunk 1 of disk.img"),
    "a shorter disk": (lambda folder: truncate(folder / "disk.img"), "bytes long"),
    "no disk": (lambda folder: (folder / "disk.img").unlink(), "cannot be read"),
    "the configuration": (lambda folder: overwrite(folder / "config.json", 5, b"!"), "config.json has changed"),
    "no NVRAM": (lambda folder: (folder / "nvram.bin").unlink(), "nvram.bin cannot be read"),
    "the manifest": (lambda folder: overwrite(folder / "manifest.json", 5, b"!"), "manifest"),
}


@pytest.mark.parametrize("name", DAMAGE)
async def test_damaged_image_is_found_removed_and_pulled_again(
    name: str, pulled: tuple[ImageService, str, Path], tmp_path: Path
) -> None:
    images, digest, folder = pulled
    damage, says = DAMAGE[name]
    assert await images.check(repair=False) == ()
    damage(folder)
    (finding,) = await images.check(repair=False)
    assert (finding.image, finding.repaired) == (digest, False)
    assert says in finding.problem
    assert folder.exists()
    assert all(finding.repaired for finding in await images.check(repair=True))
    assert not folder.exists()
    await images.pull(f"oci-layout:{tmp_path}/layout:v1", digest)
    assert await images.check(repair=False) == ()


async def test_repair_rebuilds_the_indexes(pulled: tuple[ImageService, str, Path]) -> None:
    images, digest, _ = pulled
    path = images.store.root / ".index" / "chunks.sqlite"
    ChunkIndex(path).drop(digest)
    await images.check(repair=True)
    assert ChunkIndex(path).images() == {digest}


def test_fsck_command_reports_by_exit_code(disk: Path, tmp_path: Path) -> None:
    here = tmp_path / "data"
    reference = f"oci-layout:{tmp_path}/layout:v1"
    hearth_image("push", disk, reference, here=here)
    digest = hearth_image("pull", reference, here=here).stdout.strip()
    assert hearth_image("fsck", here=here).stdout == "all images are complete\n"
    overwrite(here / "images" / digest.replace(":", "-") / "disk.img", 100, b"rot")
    found = hearth_image("fsck", "--json", here=here)
    assert found.exit_code == 1
    assert [item["image"] for item in json.loads(found.stdout)] == [digest]
    assert hearth_image("fsck", "--repair", here=here).exit_code == 0
    assert hearth_image("list", here=here).stdout == "no images\n"
