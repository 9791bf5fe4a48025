"""Image versions without end: each a new digest over one of three small guests, pushed to an OCI layout."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from agent.config import Config
from agent.images.vmconfig import Hardware

if TYPE_CHECKING:
    from agent.images.service import ImageService

REPOSITORY: Final = Path(__file__).resolve().parents[3]
DIES_AFTER_S: Final = 5


class Flavour(StrEnum):
    """How the guests of a version turn out."""

    GOOD = "good"
    UNHEALTHY = "unhealthy"  # boots and is never healthy
    DYING = "dying"  # proven healthy, then powers itself off


ARGUMENTS: Final[dict[Flavour, tuple[str, ...]]] = {
    Flavour.GOOD: (),
    Flavour.UNHEALTHY: ("--unhealthy",),
    Flavour.DYING: (f"--dies-after={DIES_AFTER_S}",),
}


@dataclass(frozen=True, slots=True)
class Version:
    """One pushed version."""

    reference: str
    digest: str
    flavour: Flavour


class VersionSource(Protocol):
    """Makes new versions, each of a digest that nobody has seen."""

    async def build(self) -> None:
        """Make what all of them need."""

    async def push(self, flavour: Flavour) -> Version:
        """Push a version. Waits while the registry is away."""

    async def outage(self, lasts_s: float) -> None:
        """Take the registry away for some seconds."""


class Versions:
    """Builds the disks once and pushes new versions of them. The registry can be away for a while."""

    def __init__(self, directory: Path, images: ImageService) -> None:
        self._disks = directory / "disks"
        self._registry = directory / "registry"
        self._images = images
        self._numbers = itertools.count(1)
        self._present = asyncio.Lock()

    async def build(self) -> None:
        """Build the disk of every flavour."""
        self._disks.mkdir(parents=True)
        for flavour, arguments in ARGUMENTS.items():
            await asyncio.to_thread(_build, self._disks / f"{flavour}.img", arguments)

    async def push(self, flavour: Flavour) -> Version:
        """Push a version that nobody has seen. Waits while the registry is away."""
        number = next(self._numbers)
        reference = f"oci-layout:{self._registry}:{flavour}-{number}"
        # The memory an image asks for is part of its configuration and so of its digest; the agent goes by the pool's.
        hardware = Hardware(os="linux", arch="amd64", cpus=1, memory_mib=64 + number)
        async with self._present:
            digest = await self._images.push(self._disks / f"{flavour}.img", reference, hardware=hardware)
        return Version(reference, digest, flavour)

    async def push_good(self) -> Version:
        """Push a version whose guests are healthy."""
        return await self.push(Flavour.GOOD)

    async def outage(self, lasts_s: float) -> None:
        """Take the registry away for some seconds."""
        away = self._registry.with_name("registry-away")
        async with self._present:
            self._registry.rename(away)
            try:
                await asyncio.sleep(lasts_s)
            finally:
                away.rename(self._registry)


def scratch_config(directory: Path) -> Config:
    """Return a configuration whose image service may push; what it keeps is thrown away with the directory."""
    return Config(data_dir=directory / "scratch")


def _build(disk: Path, arguments: tuple[str, ...]) -> None:
    builder = REPOSITORY / "scripts" / "demo-image"
    command = (sys.executable, str(builder), "small", "--version", "1.0", *arguments, str(disk))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
