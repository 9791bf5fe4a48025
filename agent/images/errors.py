"""Every way an image operation fails on purpose, with who is to blame for it."""

from __future__ import annotations

from typing import ClassVar

from agent.domain.errors import ErrorOrigin, HearthError


class ImageError(HearthError):
    """Base of all image errors."""

    code = "image-error"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.IMAGE


class BadReferenceError(ImageError):
    """A text that is no image reference."""

    code = "bad-reference"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class BadDiskError(ImageError):
    """A file that cannot be pushed as a disk."""

    code = "bad-disk"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class ImageNotFoundError(ImageError):
    """No such image, tag or version, here or in the registry."""

    code = "image-not-found"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class BadImageError(ImageError):
    """The registry has something under that name, but no VM image that can be trusted: it will not get better."""

    code = "bad-image"


class CorruptImageError(ImageError):
    """Bytes that do not match their digest, again and again, from every source."""

    code = "corrupt-image"


class RegistryError(ImageError):
    """A registry could not be reached or does not work."""

    code = "registry-unavailable"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REGISTRY


class RegistryDeniedError(RegistryError):
    """A registry refuses us: no credentials, wrong ones, or no right to that repository."""

    code = "registry-denied"


class DiskTooSmallError(ImageError):
    """An image does not fit on this host."""

    code = "disk-too-small"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.HOST


class StoreError(ImageError):
    """The local store cannot be read or written."""

    code = "image-store"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.HOST


class StoreBusyError(StoreError):
    """Another process holds a lock of the store for longer than a moment."""

    code = "image-store-busy"


class TransferError(RegistryError):
    """A transfer failed in a way that may pass: worth another try, here or at another source.

    `retry_after_s` is how long the registry asked to be left alone, if it said; `overloaded` that it has too much
    to do.
    """

    def __init__(
        self, message: str, *, remedy: str = "", retry_after_s: float | None = None, overloaded: bool = False
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.retry_after_s = retry_after_s
        self.overloaded = overloaded
