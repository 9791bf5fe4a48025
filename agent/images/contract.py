"""What the engine asks of the images package, and what it is told while a pull runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from agent.domain.model import Image, LocalImage


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far a pull is. Bytes are compressed bytes of the image; `fetched` came over the wire in this attempt."""

    reference: str
    digest: str
    total_bytes: int
    done_bytes: int  # verified and in place, whatever their source
    fetched_bytes: int
    rate_bytes_per_s: float
    eta_s: float | None
    source: str = ""  # where it comes from, in words for people


class Images(Protocol):
    """The image store with its puller, as the engine sees it."""

    async def resolve(self, reference: str) -> str:
        """Return the manifest digest (`sha256:…`) that the reference means now, asking the registry if needed."""

    async def pull(self, reference: str, digest: str) -> None:
        """Make the image version whole on this host. One flight per digest; returns at once when it is here.

        Raises `ImageError` subclasses whose `blame` tells the registry's, the image's and the host's fault apart.
        """

    def progress(self) -> tuple[PullProgress, ...]:
        """Return the pulls under way."""

    async def list(self) -> tuple[Image, ...]:
        """Return the image versions that are whole on this host."""

    async def local(self, digest: str) -> LocalImage:
        """Return where an image version lies, noting that it is in use. Raises `ImageNotFoundError`."""

    def protect(self, in_use: Callable[[], Collection[str]]) -> None:
        """Let pulls remove images for room, least recently used first, but never one that `in_use` names.

        `in_use` is called in threads, at any time. Until this is called nothing is removed by itself.
        """

    def limit_bandwidth(self, bytes_per_s: float | None) -> None:
        """Cap what all pulls take of the network together, where that is ours to say; None lifts the cap."""

    async def remove(self, digest: str) -> None:
        """Remove an image version and the references to it. Removing what is not there succeeds."""
