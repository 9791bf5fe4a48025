"""The base of every error that this project raises on purpose, and the refusals of requests."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from agent.domain.text import MESSAGE_LIMIT_BYTES, clip


class ErrorOrigin(StrEnum):
    """What a failure is attributed to. It decides the HTTP status and the advice."""

    HOST = "host"
    IMAGE = "image"
    REGISTRY = "registry"
    GUEST = "guest"
    REQUEST = "request"


class HearthError(Exception):
    """An expected failure: what failed, on which object, and in `remedy` one imperative sentence that fixes it.

    Subclasses set `code` (stable, kebab-case, visible to API clients and in logs) and `origin`. A message can quote a
    guest or a registry, so it is cut to `MESSAGE_LIMIT_BYTES`.
    """

    code: ClassVar[str] = "error"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.HOST

    def __init__(self, message: str, *, remedy: str = "") -> None:
        self.message = clip(message, MESSAGE_LIMIT_BYTES)
        super().__init__(self.message)
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class RefusedError(HearthError):
    """A request that cannot be met as it is."""

    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class PoolUnknownError(RefusedError):
    """The assignment has no such pool."""

    code = "pool-unknown"


class LeaseNotFoundError(RefusedError):
    """The journal holds no such lease."""

    code = "lease-not-found"


class VmUnknownError(RefusedError):
    """The journal holds no VM of that name."""

    code = "vm-not-found"


class VmLeasedError(RefusedError):
    """The VM is leased, and a leased VM is not touched while its lease lives."""

    code = "vm-leased"


class NothingToRetryError(RefusedError):
    """The pool serves its target, and no breaker delays it."""

    code = "nothing-to-retry"


class NothingToUndoError(RefusedError):
    """The pool has no version to return to, or it serves that version already."""

    code = "nothing-to-undo"
