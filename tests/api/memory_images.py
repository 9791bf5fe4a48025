"""An image store in memory that holds one image and pulls nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from agent.domain.model import Image, LocalImage

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from agent.images.contract import PullProgress


class MemoryImages:
    """Implements `agent.images.contract.Images`. `pulling` is the progress that it reports."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.pulling: tuple[PullProgress, ...] = ()

    async def resolve(self, reference: str) -> str:
        return self.image.digest

    async def pull(self, reference: str, digest: str) -> None:
        """Do nothing."""

    def progress(self) -> tuple[PullProgress, ...]:
        return self.pulling

    async def list(self) -> tuple[Image, ...]:
        return (self.image,)

    async def local(self, digest: str) -> LocalImage:
        folder = Path("/images")
        return LocalImage(digest, folder, folder / "disk.img", nvram=None, os="linux", arch="amd64")

    def protect(self, in_use: Callable[[], Collection[str]]) -> None:
        """Do nothing: nothing is evicted."""

    def limit_bandwidth(self, bytes_per_s: float | None) -> None:
        """Do nothing."""

    async def remove(self, digest: str) -> None:
        """Do nothing."""
