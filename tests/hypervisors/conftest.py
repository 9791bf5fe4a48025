"""Fixtures: a host for every driver there is, and drivers that are closed whatever happens."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.hypervisors.anka_rig import REAL, AnkaRig, RealAnkaRig
from tests.hypervisors.rigs import QemuRig, SimulatedRig, local_image

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from agent.hypervisors.contract import Hypervisor
    from tests.hypervisors.rigs import Rig
    from tests.support.guests import SmallImage


@pytest.fixture(params=[pytest.param("qemu", marks=pytest.mark.qemu), "simulated", "anka"])
def rig(request: pytest.FixtureRequest) -> Rig:
    """A host of each kind."""
    rig: Rig = request.getfixturevalue(f"{request.param}_rig")
    return rig


@pytest.fixture
def qemu_rig(tmp_path: Path, small_image: SmallImage) -> Iterator[QemuRig]:
    rig = QemuRig(tmp_path, local_image(small_image("1.0")))
    yield rig
    rig.clean_up()


@pytest.fixture
def anka_rig(tmp_path: Path) -> Iterator[AnkaRig | RealAnkaRig]:
    rig = RealAnkaRig(tmp_path) if REAL else AnkaRig(tmp_path)
    yield rig
    rig.clean_up()


@pytest.fixture
async def simulated_rig() -> AsyncIterator[SimulatedRig]:
    rig = SimulatedRig(local_image(Path("/images/1.0/disk.img")))
    yield rig
    rig.clean_up()


@pytest.fixture
async def new_driver(rig: Rig) -> AsyncIterator[Callable[[], Hypervisor]]:
    """Makes drivers of the rig's host."""
    async with AsyncExitStack() as stack:

        def make() -> Hypervisor:
            driver = rig.driver()
            stack.push_async_callback(driver.close)
            return driver

        yield make


@pytest.fixture
async def driver(new_driver: Callable[[], Hypervisor]) -> Hypervisor:
    """A driver that has shown that it works here."""
    driver = new_driver()
    await driver.preflight()
    return driver
