from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import pytest

from agent.config import Config, HostConfig, ImagesConfig, RegistryConfig
from agent.images.repositories import Repositories
from agent.images.service import ImageService
from agent.images.sources.registry_http import RegistryTimeouts
from tests.images.disks import QUICK, push_layout, write_disk
from tests.images.faulty_registry import FaultyRegistry, run_faulty

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from agent.images.store import Store

IMPATIENT = RegistryTimeouts(connect_s=2.0, stall_s=0.4, slow_window_s=0.5, slow_bytes_per_s=1000.0, answer_s=5.0)
"""For tests of registries that stall. Other tests must not use it: on a busy machine every registry looks stalled."""


class MakeService(Protocol):
    """Opens an image service on a fresh or given data directory."""

    async def __call__(
        self,
        *hosts: str,
        data_dir: Path | None = None,
        registry: RegistryConfig | None = None,
        reserve_mib: int = 0,
        store: Store | None = None,
    ) -> ImageService: ...


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return write_disk(tmp_path / "disk.img")


@pytest.fixture
async def faulty(tmp_path: Path, disk: Path, executor: ThreadPoolExecutor) -> AsyncIterator[FaultyRegistry]:
    """A registry with one image, which fails on demand."""
    await push_layout(disk, tmp_path / "layout", executor)
    registry = FaultyRegistry()
    registry.load(tmp_path / "layout")
    async with run_faulty(registry):
        yield registry


@pytest.fixture
def timeouts() -> RegistryTimeouts:
    """Timeouts of registries. Tests of slow registries override this fixture."""
    return RegistryTimeouts()


@pytest.fixture
async def make_service(tmp_path: Path, timeouts: RegistryTimeouts) -> AsyncIterator[MakeService]:
    services: list[ImageService] = []

    async def make(
        *hosts: str,
        data_dir: Path | None = None,
        registry: RegistryConfig | None = None,
        reserve_mib: int = 0,
        store: Store | None = None,
    ) -> ImageService:
        registries = dict.fromkeys(hosts, registry or RegistryConfig(insecure=True))
        config = Config(
            data_dir=data_dir or tmp_path / "data",
            host=HostConfig(disk_reserve_mib=reserve_mib),
            images=ImagesConfig(registries=registries),
        )
        repositories = Repositories(registries, timeouts=timeouts, credential_files=[tmp_path / "docker-config.json"])
        service = ImageService.build(config, store=store, repositories=repositories, retry=QUICK)
        await service.open()
        services.append(service)
        return service

    yield make
    for service in services:
        await service.close()
