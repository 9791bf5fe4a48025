"""Disk space for pulls: which images are evicted, which stay, and the error if the space is not enough."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain.model import Image
from agent.images.errors import DiskTooSmallError, ImageNotFoundError
from agent.images.space_manager import SpaceManager, StoreSpace, describe_largest, select_sufficient_evictions
from tests.images.disks import MIB, push_layout, write_disk
from tests.images.test_lifecycle import small_file_system, staged

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

    from agent.images.service import ImageService
    from tests.images.conftest import MakeService

images_strategy = st.lists(
    st.builds(
        Image,
        digest=st.uuids().map(str),
        allocated_bytes=st.integers(0, 1000),
        last_used_at_s=st.floats(0, 1e9, allow_nan=False),
    ),
    max_size=8,
    unique_by=lambda image: image.digest,
)


@given(images_strategy, st.integers(0, 5000), st.data())
def test_pull_evicts_idle_images_only_if_sufficient(images: list[Image], missing: int, data: st.DataObject) -> None:
    in_use = set(data.draw(st.lists(st.sampled_from([image.digest for image in images]) if images else st.nothing())))
    chosen = select_sufficient_evictions(images, in_use, missing)
    assert not {image.digest for image in chosen} & in_use
    freed = [image.allocated_bytes for image in chosen]
    idle = [image for image in images if image.digest not in in_use]
    if missing > 0 and sum(image.allocated_bytes for image in idle) >= missing:
        assert sum(freed) >= missing > sum(freed[:-1])
    else:
        assert chosen == ()
    ages = [image.last_used_at_s for image in chosen]
    assert ages == sorted(ages)
    kept = [image.last_used_at_s for image in idle if image not in chosen]
    assert not chosen or not kept or max(ages) <= min(kept)


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000), images_strategy)
def test_shortfall_respects_disk_and_budget(free: int, reserve: int, needed: int, images: list[Image]) -> None:
    held = sum(image.allocated_bytes for image in images)
    for budget in (None, 0, 2000, 10**9):
        missing = StoreSpace(free, reserve, budget).shortfall(needed, images)
        fits = needed <= free - reserve and (budget is None or held + needed <= budget)
        assert (missing == 0) == fits


def test_largest_images_are_listed_first() -> None:
    images = [Image(f"sha256:{n}", (f"host/a:{n}",), allocated_bytes=n * MIB) for n in range(8)]
    text = describe_largest(images, {"sha256:7"})
    assert text.startswith("host/a:7 7 MiB (in use), host/a:6 6 MiB")
    assert text.endswith("and 3 more")


class ClonesStore:
    """A store whose images share half of their blocks, so that an eviction frees only half of its counted bytes."""

    def __init__(self, root: Path, count: int) -> None:
        self.root = root
        self.staging = SimpleNamespace(sweep=lambda **_: 0)
        self.images = [Image(f"sha256:{n}", allocated_bytes=100, last_used_at_s=float(n)) for n in range(count)]
        self.free = 0

    def list(self) -> tuple[Image, ...]:
        return tuple(self.images)

    def remove(self, digest: str) -> None:
        self.images = [image for image in self.images if image.digest != digest]
        self.free += 50


@pytest.mark.parametrize(("needed", "evicted"), [(50, 1), (100, 2), (150, 3)])
def test_evictions_are_selected_again_when_one_frees_too_little(
    needed: int, evicted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store: Any = ClonesStore(tmp_path, 4)
    index: Any = SimpleNamespace(drop=lambda _: None)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=store.free))
    SpaceManager(store, index, reserve_bytes=0, in_use=tuple).ensure_space("sha256:new", needed)
    assert [image.digest for image in store.images] == [f"sha256:{n}" for n in range(evicted, 4)]


async def pull_versions(images: ImageService, tmp_path: Path, executor: Executor, count: int) -> list[str]:
    """Push and pull `count` versions of about 2 MiB each. The first is the least recently used."""
    digests = []
    for number in range(count):
        disk = write_disk(tmp_path / f"d{number}.img", mib=4, seed=number + 10, every=2)
        digests.append(await push_layout(disk, tmp_path / "layout", executor, tag=f"v{number}"))
        await images.pull(f"oci-layout:{tmp_path}/layout:v{number}", digests[-1])
        os.utime(images.store.path(digests[-1]), (number, number))
    return digests


async def test_pull_evicts_within_the_budget(make_service: MakeService, tmp_path: Path, executor: Executor) -> None:
    images = await make_service()
    first, second, third = await pull_versions(images, tmp_path, executor, 3)
    held = sum(image.allocated_bytes for image in await images.list())
    images.space.budget_bytes = held + MIB
    partial = images.store.staging.try_open(f"sha256:{'e' * 64}")
    assert partial is not None
    partial.close()
    disk = write_disk(tmp_path / "next.img", mib=4, seed=99, every=2)
    digest = await push_layout(disk, tmp_path / "layout", executor, tag="next")
    reference = f"oci-layout:{tmp_path}/layout:next"

    with pytest.raises(DiskTooSmallError) as raised:
        await images.pull(reference, digest)
    assert "the space is held by oci-layout:" in raised.value.message
    assert {image.digest for image in await images.list()} == {first, second, third}
    assert staged(images) == [digest.removeprefix("sha256:")]

    images.protect(lambda: {first})
    await images.pull(reference, digest)
    left = {image.digest for image in await images.list()}
    assert left in ({first, third, digest}, {first, digest})
    with pytest.raises(ImageNotFoundError):
        await images.local(second)


async def test_images_in_use_stay_when_the_pull_fails(
    make_service: MakeService, tmp_path: Path, executor: Executor
) -> None:
    images = await make_service()
    digests = await pull_versions(images, tmp_path, executor, 2)
    images.space.budget_bytes = sum(image.allocated_bytes for image in await images.list())
    images.protect(lambda: set(digests))
    digest = await push_layout(write_disk(tmp_path / "n.img", seed=99), tmp_path / "layout", executor, tag="next")
    with pytest.raises(DiskTooSmallError, match=r"\(in use\)"):
        await images.pull(f"oci-layout:{tmp_path}/layout:next", digest)
    assert {image.digest for image in await images.list()} == set(digests)


async def test_pull_evicts_on_an_almost_full_disk(
    make_service: MakeService, tmp_path: Path, executor: Executor
) -> None:
    with small_file_system(tmp_path, 8) as mount:
        images = await make_service(data_dir=mount / "data")
        first, second = await pull_versions(images, tmp_path, executor, 2)
        images.protect(lambda: {second})
        free = os.statvfs(mount).f_bavail * os.statvfs(mount).f_frsize
        (mount / "filler").write_bytes(bytes(max(0, free - 64 * 1024)))
        disk = write_disk(tmp_path / "next.img", mib=1, seed=99, every=1)
        digest = await push_layout(disk, tmp_path / "layout", executor, tag="next")
        await images.pull(f"oci-layout:{tmp_path}/layout:next", digest)
        assert {image.digest for image in await images.list()} == {second, digest} != {first}
        await images.close()
