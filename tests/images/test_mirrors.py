"""Mirrors in their order with the origin as fallback, and the bandwidth limit of all sources."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from agent.config import RegistryConfig
from agent.images.errors import ImageNotFoundError, RegistryError
from agent.images.transfer_limits import BandwidthLimiter
from tests.images.conftest import IMPATIENT
from tests.images.disks import push_layout, sha256_of, write_disk
from tests.images.faulty_registry import FaultyRegistry, run_faulty

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from concurrent.futures import Executor
    from pathlib import Path

    from agent.images.service import ImageService
    from agent.images.sources.registry_http import RegistryTimeouts
    from tests.images.conftest import MakeService

Trio = tuple[FaultyRegistry, FaultyRegistry, FaultyRegistry]


@pytest.fixture
def timeouts() -> RegistryTimeouts:
    return IMPATIENT


@pytest.fixture
async def trio(tmp_path: Path, disk: Path, executor: Executor) -> AsyncIterator[Trio]:
    """A registry and its two mirrors, all with the same image."""
    await push_layout(disk, tmp_path / "layout", executor)
    async with AsyncExitStack() as stack:
        registries = (FaultyRegistry(), FaultyRegistry(), FaultyRegistry())
        for registry in registries:
            registry.load(tmp_path / "layout")
            await stack.enter_async_context(run_faulty(registry))
        yield registries


async def pull(trio: Trio, make_service: MakeService) -> tuple[ImageService, str]:
    origin, *mirrors = trio
    settings = RegistryConfig(insecure=True, mirrors=tuple(mirror.host for mirror in mirrors))
    images = await make_service(*(registry.host for registry in trio), registry=settings)
    digest = await images.resolve(origin.reference())
    await images.pull(origin.reference(), digest)
    return images, digest


def chunks(registry: FaultyRegistry) -> int:
    return len([seen for seen in registry.gets() if len(registry.blobs[seen.path.rpartition("/")[2]]) > 50_000])


async def test_first_mirror_serves_all_blobs(trio: Trio, make_service: MakeService, disk: Path) -> None:
    origin, first, second = trio
    images, digest = await pull(trio, make_service)
    assert sha256_of((await images.local(digest)).disk) == sha256_of(disk)
    assert (chunks(origin), chunks(second)) == (0, 0)
    assert chunks(first) > 0


@pytest.mark.parametrize("fault", ["cut at 40 %", "500", "stall", "reset", "too short", "another range"])
async def test_next_mirror_is_used_when_one_fails(
    fault: str, trio: Trio, make_service: MakeService, disk: Path
) -> None:
    _, first, second = trio
    first.arm(fault, times=float("inf"))
    images, digest = await pull(trio, make_service)
    assert sha256_of((await images.local(digest)).disk) == sha256_of(disk)
    assert chunks(second) > 0
    assert len(first.gets()) <= 8  # every stream used it at most once before it was skipped


async def test_origin_serves_when_all_mirrors_fail(trio: Trio, make_service: MakeService, disk: Path) -> None:
    origin, first, second = trio
    first.blobs.clear()
    first.manifests.clear()
    second.arm("500", times=float("inf"))
    images, digest = await pull(trio, make_service)
    assert sha256_of((await images.local(digest)).disk) == sha256_of(disk)
    assert chunks(origin) > 0


async def test_corrupt_mirror_costs_one_attempt(trio: Trio, make_service: MakeService, disk: Path) -> None:
    origin, first, _ = trio
    first.arm("wrong bytes", times=float("inf"), only=lambda name: len(first.blobs[name]) > 50_000)
    images, digest = await pull(trio, make_service)
    assert sha256_of((await images.local(digest)).disk) == sha256_of(disk)
    assert chunks(origin) > 0


async def test_corrupt_manifest_is_fetched_from_another_source(
    trio: Trio, make_service: MakeService, disk: Path
) -> None:
    _, first, second = trio
    first.manifests = {name: content + b" " for name, content in first.manifests.items()}
    images, digest = await pull(trio, make_service)
    assert sha256_of((await images.local(digest)).disk) == sha256_of(disk)
    assert chunks(second) > 0


async def test_error_of_the_origin_is_reported(trio: Trio, make_service: MakeService) -> None:
    origin, first, second = trio
    for registry in trio:
        registry.arm("500", times=float("inf"))
    with pytest.raises(RegistryError, match=origin.host):
        await pull(trio, make_service)
    first.manifests.clear()
    second.manifests.clear()
    origin.manifests.clear()
    with pytest.raises(ImageNotFoundError, match=origin.host):
        await pull(trio, make_service)


class Time:
    """A clock that advances only in `sleep`."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        self.now_s += delay_s


async def test_bandwidth_limit_holds_and_changes_immediately() -> None:
    time = Time()
    limiter = BandwidthLimiter(1000.0, clock=time.clock, sleep=time.sleep)
    for _ in range(50):
        await limiter.take(100)
    assert 4.8 <= time.now_s - 100.0 <= 5.0
    limiter.bytes_per_s = 10_000.0
    began_s = time.now_s
    for _ in range(50):
        await limiter.take(100)
    assert time.now_s - began_s <= 0.6
    limiter.bytes_per_s = None
    assert await limiter.take(10**12) == 0.0


async def test_limited_pull_is_not_treated_as_stalled(
    tmp_path: Path, executor: Executor, make_service: MakeService
) -> None:
    disk = write_disk(tmp_path / "d.img", mib=6, every=1)
    await push_layout(disk, tmp_path / "layout", executor)
    registry = FaultyRegistry()
    registry.load(tmp_path / "layout")
    async with run_faulty(registry):
        images = await make_service(registry.host)
        digest = await images.resolve(registry.reference())
        images.limit_bandwidth(2_000_000.0)
        await images.pull(registry.reference(), digest)
        assert sha256_of((await images.local(digest)).disk) == sha256_of(disk)
        assert len(registry.gets()) == len({seen.path for seen in registry.gets()})
