"""Exit codes, on which scripts branch. docs/api.md lists them."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from agent.cli.client import ProblemError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.domain.errors import HearthError


class ExitCode(IntEnum):
    """How a command ended."""

    OK = 0
    FAILURE = 1  # every error without its own code
    USAGE = 2  # the command line itself is wrong
    UNREACHABLE = 3  # the agent does not answer
    NOT_FOUND = 4  # no such pool, VM, lease or image
    NO_VM_FREE = 5  # no VM became ready in time: try again, or on another host
    REFUSED = 6  # the current state forbids it: leased, draining, changed by another client
    UNAVAILABLE = 69  # `hearth run` or `hearth service` cannot work on this host (EX_UNAVAILABLE of sysexits.h)
    STUCK = 70  # the watchdog ended `hearth run` (EX_SOFTWARE)
    BAD_CONFIGURATION = 78  # invalid configuration or assignment (EX_CONFIG)
    EXEC_FAILED = 125  # `hearth exec` or `hearth ssh` itself failed, so there is no exit code of the guest
    INTERRUPTED = 130  # Ctrl-C
    BROKEN_PIPE = 141  # the reader of the output has ended, as after SIGPIPE


EXIT_BY_CODE: Final[Mapping[str, ExitCode]] = {
    "agent-unreachable": ExitCode.UNREACHABLE,
    "pool-unknown": ExitCode.NOT_FOUND,
    "vm-not-found": ExitCode.NOT_FOUND,
    "evidence-not-found": ExitCode.NOT_FOUND,
    "lease-not-found": ExitCode.NOT_FOUND,
    "lease-ended": ExitCode.NOT_FOUND,
    "image-not-found": ExitCode.NOT_FOUND,
    "no-vm-free": ExitCode.NO_VM_FREE,
    "vm-leased": ExitCode.REFUSED,
    "lease-conflict": ExitCode.REFUSED,
    "lease-wait-refused": ExitCode.REFUSED,
    "draining": ExitCode.REFUSED,
    "unauthenticated": ExitCode.REFUSED,
    "role-too-low": ExitCode.REFUSED,
    "token-name": ExitCode.REFUSED,
    "already-running": ExitCode.REFUSED,
    "journal-healthy": ExitCode.REFUSED,
    "no-journal": ExitCode.NOT_FOUND,
    "nothing-to-retry": ExitCode.REFUSED,
    "nothing-to-undo": ExitCode.REFUSED,
    "assignment-read-only": ExitCode.REFUSED,
    "assignment-conflict": ExitCode.REFUSED,
    "service-unsupported": ExitCode.UNAVAILABLE,
    "service-refused": ExitCode.REFUSED,
    "service-missing": ExitCode.NOT_FOUND,
    "bad-reference": ExitCode.USAGE,
    "bad-disk": ExitCode.USAGE,
    "digest-ambiguous": ExitCode.USAGE,
    "bad-configuration": ExitCode.BAD_CONFIGURATION,
}
"""The exit code of each error code; the others exit with `FAILURE`."""


def exit_code_for(error: HearthError) -> ExitCode:
    """Return the exit code of a command that failed with this error."""
    code = error.problem if isinstance(error, ProblemError) else error.code
    return EXIT_BY_CODE.get(code, ExitCode.FAILURE)
