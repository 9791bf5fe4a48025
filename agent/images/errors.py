"""The expected errors of image operations, each with its origin."""

from __future__ import annotations

from typing import ClassVar

from agent.domain.errors import ErrorOrigin, HearthError


class ImageError(HearthError):
    """Base of all image errors."""

    code = "image-error"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.IMAGE


class BadReferenceError(ImageError):
    """A text that is not an image reference."""

    code = "bad-reference"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class BadDiskError(ImageError):
    """A file that cannot be pushed as a disk."""

    code = "bad-disk"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class ImageNotFoundError(ImageError):
    """An image, tag or version that does not exist, on this host or in the registry."""

    code = "image-not-found"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class BadImageError(ImageError):
    """An object in a registry that is not a valid VM image. A retry does not help."""

    code = "bad-image"


class CorruptImageError(ImageError):
    """Content that does not match its digest, repeatedly and from every source."""

    code = "corrupt-image"


class RegistryError(ImageError):
    """A registry that is unreachable or does not work."""

    code = "registry-unavailable"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REGISTRY


class RegistryDeniedError(RegistryError):
    """A registry that denies access: no credentials, wrong credentials, or no permission for the repository."""

    code = "registry-denied"


class DiskTooSmallError(ImageError):
    """An image that does not fit on this host."""

    code = "disk-too-small"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.HOST


class StoreError(ImageError):
    """A local store that cannot be read or written."""

    code = "image-store"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.HOST


class StoreBusyError(StoreError):
    """A store whose lock another process holds for too long."""

    code = "image-store-busy"


class TransferError(RegistryError):
    """A temporary failure of a transfer: a retry, or another source, may succeed.

    `retry_after_s` is the delay that the registry requested, if any. `overloaded` is set if it reported overload.
    """

    def __init__(
        self, message: str, *, remedy: str = "", retry_after_s: float | None = None, overloaded: bool = False
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.retry_after_s = retry_after_s
        self.overloaded = overloaded
