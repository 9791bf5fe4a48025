"""Calls of launchctl(1). Their results are taken from exit codes (launchd's error table), not from the output.

`load` and `unload` are not used, because they report success for jobs that did not start.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from agent.host.service.errors import ServiceError
from agent.processes.command import Command, CommandTimeoutError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from agent.host.service.target import Target
    from agent.processes.command import CommandResult, CommandRunner

TIMEOUT_S: Final = 20.0

_ABSENT: Final = (3, 113)  # ESRCH of bootout; "Could not find service" of print and kickstart
_IN_PROGRESS: Final = (36, 37)  # EINPROGRESS, EALREADY: launchd still processes an earlier request
_MAYBE_LOADED: Final = (5, 17, 37)  # EIO and EEXIST have many causes; a job that is loaded already is one
_REMEDIES: Final[Mapping[int, str]] = {
    1: "run the command with sudo",
    5: "launchd reports no cause: run the command with sudo, check that the plist belongs to the user of the job and "
    "is writable only for this user, and read `log show --last 5m --predicate 'process == \"launchd\"'`",
    112: "log in at the screen as the user of the job first: the job needs this login session",
    119: "change the owner of the plist: root for a daemon, the user for a user service",
    125: "log in at the screen as the user of the job first: the job needs this login session",
    133: "run `launchctl enable` for the service",
    134: "log in at the screen as the user of the job first: the job needs this login session",
    150: "run the command with sudo",
}
_FIELD: Final = re.compile(r"^\t([a-z][a-z ]*) = (.*)$", re.MULTILINE)


class RequestOutcome(Enum):
    """Outcome of a request that launchd did not refuse."""

    DONE = "done"
    IN_PROGRESS = "in progress"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Job:
    """A loaded job. `pid` is None while the job waits for its next start."""

    state: str
    pid: int | None
    runs: int
    last_exit: str
    program: str
    path: str


class Launchctl:
    """Sends requests to launchd. Each method raises `ServiceError` with the output of launchctl, and `CommandError`."""

    def __init__(self, runner: CommandRunner, program: str = "launchctl") -> None:
        self._runner = runner
        self._program = program

    async def find_job(self, target: Target) -> Job | None:
        """Return the loaded job, or None if it is not loaded."""
        result = await self._call("print", target.service)
        if result.exit_code in _ABSENT:
            return None
        if result.exit_code:
            raise _request_error("print", result)
        return parse_job(result.stdout.decode(errors="replace"))

    async def bootstrap(self, target: Target, plist: Path) -> RequestOutcome:
        """Load a job, which starts it. Return DONE also if it is loaded already."""
        result = await self._call("bootstrap", target.domain, str(plist))
        if result.exit_code == 0:
            return RequestOutcome.DONE
        if result.exit_code in _MAYBE_LOADED and await self.find_job(target) is not None:
            return RequestOutcome.IN_PROGRESS if result.exit_code in _IN_PROGRESS else RequestOutcome.DONE
        if result.exit_code in _IN_PROGRESS:
            return RequestOutcome.IN_PROGRESS
        raise _request_error("bootstrap", result)

    async def bootout(self, target: Target) -> RequestOutcome:
        """Request the end of a job. It can take until its ExitTimeOut: poll `find_job` until it is gone."""
        try:
            result = await self._call("bootout", target.service)
        except CommandTimeoutError:  # some releases of macOS return only after the end of the job
            return RequestOutcome.IN_PROGRESS
        if result.exit_code in _ABSENT:
            return RequestOutcome.ABSENT
        if result.exit_code in _IN_PROGRESS:
            return RequestOutcome.IN_PROGRESS
        if result.exit_code:
            raise _request_error("bootout", result)
        return RequestOutcome.DONE

    async def kickstart(self, target: Target) -> RequestOutcome:
        """Start a loaded job without its ThrottleInterval. A running job is not affected."""
        result = await self._call("kickstart", target.service)
        if result.exit_code in _ABSENT:
            return RequestOutcome.ABSENT
        if result.exit_code in _IN_PROGRESS:
            return RequestOutcome.IN_PROGRESS
        if result.exit_code:
            raise _request_error("kickstart", result)
        return RequestOutcome.DONE

    async def enable(self, target: Target) -> None:
        """Revert an earlier `launchctl disable`: bootstrap refuses a disabled job without a cause."""
        result = await self._call("enable", target.service)
        if result.exit_code:
            raise _request_error("enable", result)

    async def _call(self, *arguments: str) -> CommandResult:
        command = Command((self._program, *arguments), TIMEOUT_S)
        return await self._runner.run(command, check=False)


def parse_job(text: str) -> Job:
    """Parse the output of `launchctl print` for a job. Its format is not stable: missing fields are empty."""
    fields = dict(reversed(_FIELD.findall(text)))  # the first field of each name belongs to the job itself
    pid, runs = fields.get("pid", ""), fields.get("runs", "")
    return Job(
        state=fields.get("state", "unknown"),
        pid=int(pid) if pid.isdecimal() else None,
        runs=int(runs) if runs.isdecimal() else 0,
        last_exit=fields.get("last exit code", ""),
        program=fields.get("program", ""),
        path=fields.get("path", ""),
    )


def _request_error(verb: str, result: CommandResult) -> ServiceError:
    output = (result.stderr.strip() or result.stdout.strip()).decode(errors="replace")
    return ServiceError(
        f"launchctl {verb} ended with {result.exit_code}: {output or 'no output'}",
        remedy=_REMEDIES.get(result.exit_code, f"run `launchctl error {result.exit_code}` for its meaning"),
    )
