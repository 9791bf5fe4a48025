"""Source of image versions: each has a new digest, holds one of three small guests, and is in an OCI layout."""

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
    """Behaviour of a version's guests."""

    GOOD = "good"
    UNHEALTHY = "unhealthy"  # boots, and fails its probes
    DYING = "dying"  # passes its probes, then powers itself off


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
    """Source of new versions, each with a new digest."""

    async def build(self) -> None:
        """Prepare the source. Call it once, first."""

    async def push(self, flavour: Flavour) -> Version:
        """Push a version. Blocks while the registry is unavailable."""

    async def outage(self, lasts_s: float) -> None:
        """Make the registry unavailable for some seconds."""


class Versions:
    """See `VersionSource`. Builds each flavour's disk once."""

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
        """See `VersionSource`."""
        number = next(self._numbers)
        reference = f"oci-layout:{self._registry}:{flavour}-{number}"
        # The memory size is part of an image's configuration, so it changes the digest. The agent uses the pool's size.
        hardware = Hardware(os="linux", arch="amd64", cpus=1, memory_mib=64 + number)
        async with self._present:
            digest = await self._images.push(self._disks / f"{flavour}.img", reference, hardware=hardware)
        return Version(reference, digest, flavour)

    async def push_good(self) -> Version:
        """Push a version whose guests are healthy."""
        return await self.push(Flavour.GOOD)

    async def outage(self, lasts_s: float) -> None:
        """Make the registry unavailable for some seconds."""
        away = self._registry.with_name("registry-away")
        async with self._present:
            self._registry.rename(away)
            try:
                await asyncio.sleep(lasts_s)
            finally:
                away.rename(self._registry)


def scratch_config(directory: Path) -> Config:
    """Return a configuration for an image service that pushes. Its data directory is below `directory`."""
    return Config(data_dir=directory / "scratch")


def _build(disk: Path, arguments: tuple[str, ...]) -> None:
    builder = REPOSITORY / "scripts" / "demo-image"
    command = (sys.executable, str(builder), "small", "--version", "1.0", *arguments, str(disk))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
