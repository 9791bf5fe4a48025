"""Fixtures: a whole host with a registry in a folder, the real daemon and real guests."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest_asyncio

from agent.config import Config
from agent.images.service import open_images
from agent.images.vmconfig import Hardware
from scripts.lib.host import Host
from tests.support.guests import build_small_image

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest


async def push(disk: Path, reference: str, data_dir: Path) -> str:
    """Push a small guest's disk and return its digest."""
    async with open_images(Config(data_dir=data_dir)) as images:
        hardware = Hardware(os="linux", arch="amd64", cpus=1, memory_mib=256)
        return await images.push(disk, reference, hardware=hardware)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def layout(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """References of small guests in an OCI layout: 1.0, 2.0, unhealthy, and dying, which powers off after 12 s."""
    root = tmp_path_factory.mktemp("layout")
    disks = {
        "1.0": build_small_image("1.0"),
        "2.0": build_small_image("2.0"),
        "unhealthy": build_small_image("3.0", unhealthy=True),
        "dying": build_small_image("4.0", dies_after_s=12),
    }
    for tag, disk in disks.items():
        await push(disk, f"oci-layout:{root}/registry:{tag}", root / "scratch")
    return {tag: f"oci-layout:{root}/registry:{tag}" for tag in disks}


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    """A configured host that is not started yet. Always removed with its VMs after the test."""
    made = Host(Path(tempfile.mkdtemp(prefix="hearth-test-")))
    made.configure()
    try:
        yield made
    finally:
        await made.close()
