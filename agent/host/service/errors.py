"""Errors of the launchd service."""

from __future__ import annotations

from typing import ClassVar

from agent.domain.errors import ErrorOrigin, HearthError


class ServiceError(HearthError):
    """A request to launchd failed. The message contains its output."""

    code = "service-failed"


class ServiceUnsupportedError(ServiceError):
    """This system has no launchd."""

    code = "service-unsupported"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class ServiceRefusedError(ServiceError):
    """The request would harm the host: two agents, a missing program, or a secret in a plist."""

    code = "service-refused"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class ServiceMissingError(ServiceError):
    """Hearth is not installed as a service."""

    code = "service-missing"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST
