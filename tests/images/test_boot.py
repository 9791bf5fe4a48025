"""Boot of a pulled image in the layout of stock Tart."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from agent.hypervisors.contract import GuestError
from tests.hypervisors.rigs import QemuRig, spec
from tests.images.disks import MIB
from tests.images.tartlike import TART_CHUNK, write_tart_layout

if TYPE_CHECKING:
    from pathlib import Path

    from agent.domain.model import LocalImage
    from tests.images.conftest import MakeService
    from tests.support.guests import SmallImage

pytestmark = pytest.mark.timeout(120)

BOOT_DEADLINE_S = 60.0


async def boot(image: LocalImage, folder: Path) -> None:
    """Start a VM from an image and wait until its guest agent answers."""
    rig = QemuRig(folder, image)
    driver = rig.driver()
    try:
        await driver.preflight()
        await driver.clone(spec(), image)
        await driver.start(spec())
        async with asyncio.timeout(BOOT_DEADLINE_S):
            while True:
                try:
                    await driver.ping(spec().name, timeout_s=5)
                except GuestError:
                    await asyncio.sleep(0.1)
                else:
                    break
        await driver.stop(spec().name, grace_s=0)
        await driver.delete(spec().name)
    finally:
        await driver.close()
        rig.clean_up()


@pytest.mark.qemu
async def test_image_in_the_layout_of_tart_boots(
    small_image: SmallImage, make_service: MakeService, tmp_path: Path
) -> None:
    """The image has 512 MiB chunks with blocks that refer back."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(small_image("1.0").read_bytes())
    os.truncate(disk, TART_CHUNK + 16 * MIB)  # one whole chunk of Tart, and a shorter last one
    digest = await asyncio.to_thread(write_tart_layout, tmp_path / "layout", disk, nvram=b"")
    images = await make_service()
    await images.pull(f"oci-layout:{tmp_path}/layout:v1", digest)
    await boot(await images.local(digest), tmp_path)
