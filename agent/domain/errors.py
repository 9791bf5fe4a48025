"""The one base of every error this project raises on purpose, and who is to blame for it."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class ErrorOrigin(StrEnum):
    """Whose fault a failure is. It decides which breaker opens and what the operator is told."""

    HOST = "host"
    IMAGE = "image"
    REGISTRY = "registry"
    GUEST = "guest"
    REQUEST = "request"


class HearthError(Exception):
    """An expected failure, with a message for people that names the thing at fault and, in `remedy`, the way out.

    Subclasses set `code` (stable, kebab-case, seen by API clients and in logs) and `blame`.
    """

    code: ClassVar[str] = "error"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.HOST

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message
