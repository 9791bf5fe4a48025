"""Exit codes: what scripts branch on. Documented in docs/api.md."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from agent.cli.client import ProblemError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.domain.errors import HearthError


class Exit(IntEnum):
    """How a command ended."""

    OK = 0
    FAILURE = 1  # anything not named below
    USAGE = 2  # the command line itself is wrong
    UNREACHABLE = 3  # the agent does not answer
    NOT_FOUND = 4  # no such pool, VM, lease or image
    NO_VM_FREE = 5  # no VM turned ready in time: try again, or elsewhere
    REFUSED = 6  # the state of things forbids it: leased, draining, changed meanwhile
    UNAVAILABLE = (
        69  # `hearth run` or `hearth service` cannot work on this host as it is (EX_UNAVAILABLE of sysexits.h)
    )
    STUCK = 70  # the watchdog ended `hearth run` (EX_SOFTWARE)
    BAD_CONFIGURATION = 78  # a configuration or assignment that cannot be used (EX_CONFIG)
    EXEC_FAILED = 125  # `hearth exec` and `ssh`: Hearth itself failed, so the guest has no exit code
    INTERRUPTED = 130  # Ctrl-C
    BROKEN_PIPE = 141  # whoever read the output has gone, as after SIGPIPE


EXIT_BY_CODE: Final[Mapping[str, Exit]] = {
    "agent-unreachable": Exit.UNREACHABLE,
    "pool-unknown": Exit.NOT_FOUND,
    "vm-not-found": Exit.NOT_FOUND,
    "evidence-not-found": Exit.NOT_FOUND,
    "lease-not-found": Exit.NOT_FOUND,
    "lease-ended": Exit.NOT_FOUND,
    "image-not-found": Exit.NOT_FOUND,
    "no-vm-free": Exit.NO_VM_FREE,
    "vm-leased": Exit.REFUSED,
    "lease-conflict": Exit.REFUSED,
    "lease-wait-refused": Exit.REFUSED,
    "draining": Exit.REFUSED,
    "unauthenticated": Exit.REFUSED,
    "role-too-low": Exit.REFUSED,
    "token-name": Exit.REFUSED,
    "already-running": Exit.REFUSED,
    "journal-healthy": Exit.REFUSED,
    "no-journal": Exit.NOT_FOUND,
    "nothing-to-retry": Exit.REFUSED,
    "nothing-to-undo": Exit.REFUSED,
    "assignment-read-only": Exit.REFUSED,
    "assignment-conflict": Exit.REFUSED,
    "service-unsupported": Exit.UNAVAILABLE,
    "service-refused": Exit.REFUSED,
    "service-missing": Exit.NOT_FOUND,
    "bad-reference": Exit.USAGE,
    "bad-disk": Exit.USAGE,
    "bad-configuration": Exit.BAD_CONFIGURATION,
}
"""The exit code of every error code; `FAILURE` for the rest."""


def exit_of(error: HearthError) -> Exit:
    """Return how a command ends that met this error."""
    code = error.problem if isinstance(error, ProblemError) else error.code
    return EXIT_BY_CODE.get(code, Exit.FAILURE)
