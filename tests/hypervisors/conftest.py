"""Fixtures: a rig for each driver, and drivers that are closed after the test."""

from __future__ import annotations

import os
import shutil
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.config import TartConfig
from tests.hypervisors.anka_rig import REAL, AnkaRig, RealAnkaRig
from tests.hypervisors.rigs import REAL_MAC, QemuRig, SimulatedRig, TartRig, local_image
from tests.support.tart import TartHome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from agent.hypervisors.contract import Hypervisor
    from tests.hypervisors.rigs import Rig
    from tests.support.guests import SmallImage


@pytest.fixture(
    params=[
        pytest.param("qemu", marks=pytest.mark.qemu),
        "simulated",
        pytest.param("tart", marks=pytest.mark.slow),
        pytest.param("anka", marks=pytest.mark.slow),
    ]
)
def rig(request: pytest.FixtureRequest) -> Rig:
    """A host for each driver."""
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
def tart_rig(tmp_path: Path) -> Iterator[TartRig]:
    rig = real_tart_rig(tmp_path)
    if rig is None:
        home = TartHome(tmp_path / "tart-home")
        rig = TartRig(home, home.add_image(), tmp_path / "records")
    yield rig
    rig.clean_up()


def real_tart_rig(folder: Path) -> TartRig | None:
    """Return a rig of this Mac's own Tart. HEARTH_REAL_IMAGE names an image of its cache: `host/name@sha256:…`."""
    program = shutil.which("tart")
    if not REAL_MAC or program is None:
        return None
    home = TartConfig().home_path
    host, _, rest = os.environ["HEARTH_REAL_IMAGE"].partition("/")
    image = home / "cache" / "OCIs" / host.replace(":", "%3A") / rest.replace("@", "/")
    found = local_image(image / "disk.img", arch="arm64", system="darwin", nvram=image / "nvram.bin")
    return TartRig(TartHome(home), replace(found, digest=image.name), folder / "records", program)


@pytest.fixture
async def new_driver(rig: Rig) -> AsyncIterator[Callable[[], Hypervisor]]:
    """A function that makes drivers of the rig's host."""
    async with AsyncExitStack() as stack:

        def make() -> Hypervisor:
            driver = rig.driver()
            stack.push_async_callback(driver.close)
            return driver

        yield make


@pytest.fixture
async def driver(new_driver: Callable[[], Hypervisor]) -> Hypervisor:
    """A driver after its preflight."""
    driver = new_driver()
    await driver.preflight()
    return driver
