"""The interface between the engine and the images package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from agent.domain.model import Image, LocalImage


@dataclass(frozen=True, slots=True)
class PullProgress:
    """Progress of a pull, in compressed bytes of the image. `fetched_bytes` were received in this attempt."""

    reference: str
    digest: str
    total_bytes: int
    done_bytes: int  # verified and on the disk, whatever their source
    fetched_bytes: int
    rate_bytes_per_s: float
    eta_s: float | None
    source: str = ""  # the repository, for display
    waiting: str = ""  # what failed transfers are retried for, for display


class Images(Protocol):
    """The image store and its puller."""

    async def resolve(self, reference: str) -> str:
        """Return the manifest digest (`sha256:…`) that the reference names now. Queries the registry if needed."""

    async def pull(self, reference: str, digest: str) -> None:
        """Pull an image version. Returns immediately if it is present. Callers for one digest share one pull.

        Raises `ImageError` subclasses; their `origin` is the registry, the image, the host or the request.
        """

    def progress(self) -> tuple[PullProgress, ...]:
        """Return the progress of the running pulls."""

    async def list(self) -> tuple[Image, ...]:
        """Return the complete image versions on this host."""

    async def local(self, digest: str) -> LocalImage:
        """Return the paths of an image version, and mark it as used now. Raises `ImageNotFoundError`."""

    def protect(self, in_use: Callable[[], Collection[str]]) -> None:
        """Allow pulls to evict images, least recently used first, except those whose digest `in_use` returns.

        `in_use` is called in threads, at any time. Before this call, no pull evicts an image.
        """

    def limit_bandwidth(self, bytes_per_s: float | None) -> None:
        """Limit the bytes per second that all pulls receive together, if supported; None removes the limit."""

    async def remove(self, digest: str) -> None:
        """Remove an image version and its references. Removing an unknown version succeeds."""
