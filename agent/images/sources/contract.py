"""What a place that holds images must do. One conformance suite runs over all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.images.manifest import Blob

    Write = Callable[[memoryview], Awaitable[None]]


class Source(Protocol):
    """A place to read the images of one repository from.

    Errors: `TransferError` for what may pass, `ImageNotFoundError`, `RegistryDeniedError` and `RegistryError` for what
    will not. Nothing read is trusted: callers check digests.
    """

    @property
    def name(self) -> str:
        """What to call it in messages."""

    async def digest(self, tag: str) -> str | None:
        """Return what digest the place claims for a tag, where it can say so cheaply; else None."""

    async def manifest(self, target: str) -> bytes:
        """Return the bytes of the manifest that a tag or digest names."""

    @property
    def ranged(self) -> bool:
        """Whether parts of blobs can be had by themselves, as far as is known."""

    async def read(self, blob: Blob, start: int, size: int, write: Write) -> None:
        """Pass `size` bytes of a blob from `start` on to `write`, piece by piece and in order.

        A caller whose read fails half-way goes on from what it has been given. While `write` waits, so does the source.
        """

    def distrust(self, blob: Blob) -> None:
        """Note that what was read of a blob was corrupt: where there is a choice, choose another place next time."""


class Sink(Protocol):
    """A place to write images of one repository to."""

    @property
    def name(self) -> str:
        """What to call it in messages."""

    async def has(self, blob: Blob) -> bool:
        """Whether the blob is already there, whole."""

    async def mount(self, blob: Blob, repository: str) -> bool:
        """Take a blob over from another repository of the place; False where it is not there or not ours."""

    async def put(self, blob: Blob, content: bytes | bytearray) -> None:
        """Store a blob. Its digest has been computed from `content`."""

    async def put_manifest(self, content: bytes, *, media_type: str, tag: str | None) -> bool:
        """Store a manifest, and point the tag at it if one is given.

        Returns whether the place has listed it among the referrers of its subject by itself.
        """


class Repository(Source, Sink, Protocol):
    """A place to read from and write to."""

    async def referrers(self, digest: str) -> bytes | None:
        """Return the image index of what is attached to a manifest; None where the place has no such list."""
