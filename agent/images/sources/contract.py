"""The interface of an image repository. One conformance suite tests all implementations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.images.manifest import Blob

    Write = Callable[[memoryview], Awaitable[None]]


class Source(Protocol):
    """A repository to read images from.

    Raises `TransferError` for temporary failures, and `ImageNotFoundError`, `RegistryDeniedError` and `RegistryError`
    for permanent ones. Content is not trusted: the caller must check digests.
    """

    @property
    def name(self) -> str:
        """The name for messages."""

    async def digest(self, tag: str) -> str | None:
        """Return the digest that the repository claims for a tag; None if only the manifest has it."""

    async def manifest(self, target: str) -> bytes:
        """Return the bytes of the manifest of a tag or digest."""

    @property
    def ranged(self) -> bool:
        """Whether the repository serves ranges of blobs, as far as is known."""

    async def read(self, blob: Blob, start: int, size: int, write: Write) -> None:
        """Pass `size` bytes of a blob from `start` to `write`, in pieces and in order.

        If the read fails, the caller resumes after the bytes it received. The source waits while `write` waits.
        """

    def distrust(self, blob: Blob) -> None:
        """Record that the content of a blob was corrupt, so that the next read uses another source, if there is one."""


class Sink(Protocol):
    """A repository to write images to. Raises the errors of `Source`."""

    @property
    def name(self) -> str:
        """The name for messages."""

    async def has(self, blob: Blob) -> bool:
        """Return whether the repository has the complete blob."""

    async def mount(self, blob: Blob, repository: str) -> bool:
        """Mount a blob from another repository of the registry; False if it does not exist or access is denied."""

    async def put(self, blob: Blob, content: bytes | bytearray) -> None:
        """Store a blob. The caller has computed its digest from `content`."""

    async def put_manifest(self, content: bytes, *, media_type: str, tag: str | None) -> bool:
        """Store a manifest, and set the tag to it if one is given.

        Returns whether the registry has listed the manifest among the referrers of its subject.
        """


class Repository(Source, Sink, Protocol):
    """A repository to read from and write to."""

    async def referrers(self, digest: str) -> bytes | None:
        """Return the list of the artifacts attached to a manifest, which may be malformed; None if there is no list."""
