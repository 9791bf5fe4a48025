"""Why Hearth cannot be put under launchd, or taken from it."""

from __future__ import annotations

from typing import ClassVar

from agent.domain.errors import ErrorOrigin, HearthError


class ServiceError(HearthError):
    """launchd did not do what was asked; the message holds its own words."""

    code = "service-failed"


class ServiceUnsupportedError(ServiceError):
    """This system has no launchd."""

    code = "service-unsupported"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class ServiceRefusedError(ServiceError):
    """It would leave the host worse than it is: two agents, a program that is not there, a secret in a plist."""

    code = "service-refused"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class ServiceMissingError(ServiceError):
    """Hearth is not installed as a service."""

    code = "service-missing"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST
