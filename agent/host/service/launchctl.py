"""launchctl, as launchctl(1) and launchd's error table have it: exit codes, not words, tell what happened.

`load` and `unload` are never used: they report success for jobs that did not start.
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
_IN_PROGRESS: Final = (36, 37)  # EINPROGRESS, EALREADY: launchd still works on an earlier request
_MAYBE_LOADED: Final = (5, 17, 37)  # EIO and EEXIST stand for many things, a job that is loaded already among them
_REMEDIES: Final[Mapping[int, str]] = {
    1: "run it with sudo",
    5: "launchd gives no reason: run it with sudo, see that the plist belongs to the job's user and nobody else may "
    "write to it, and see `log show --last 5m --predicate 'process == \"launchd\"'`",
    112: "log in at the screen as the job's user first: an agent needs that user's session",
    119: "the plist of a daemon belongs to root, that of a user to that user",
    125: "log in at the screen as the job's user first: an agent needs that user's session",
    133: "run `launchctl enable` for the service",
    134: "log in at the screen as the job's user first: an agent needs that user's session",
    150: "run it with sudo",
}
_FIELD: Final = re.compile(r"^\t([a-z][a-z ]*) = (.*)$", re.MULTILINE)


class Answer(Enum):
    """What became of a request that launchd did not refuse."""

    DONE = "done"
    IN_PROGRESS = "in progress"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Job:
    """A job that launchd knows. `pid` is None while it waits to be started again."""

    state: str
    pid: int | None
    runs: int
    last_exit: str
    program: str
    path: str


class Launchctl:
    """Speaks to launchd. Every method raises `ServiceError` with launchctl's own words, and `CommandError`."""

    def __init__(self, runner: CommandRunner, program: str = "launchctl") -> None:
        self._runner = runner
        self._program = program

    async def look(self, target: Target) -> Job | None:
        """Return the job as launchd has it, or None when it has none."""
        result = await self._call("print", target.service)
        if result.exit_code in _ABSENT:
            return None
        if result.exit_code:
            raise _refused("print", result)
        return parse_job(result.stdout.decode(errors="replace"))

    async def bootstrap(self, target: Target, plist: Path) -> Answer:
        """Load a job, which starts it. Done as well when it is loaded already."""
        result = await self._call("bootstrap", target.domain, str(plist))
        if result.exit_code == 0:
            return Answer.DONE
        if result.exit_code in _MAYBE_LOADED and await self.look(target) is not None:
            return Answer.IN_PROGRESS if result.exit_code in _IN_PROGRESS else Answer.DONE
        if result.exit_code in _IN_PROGRESS:
            return Answer.IN_PROGRESS
        raise _refused("bootstrap", result)

    async def bootout(self, target: Target) -> Answer:
        """Ask for the end of a job. It may take until its ExitTimeOut: `look` tells when it is gone."""
        try:
            result = await self._call("bootout", target.service)
        except CommandTimeoutError:  # some releases wait for the job's end before they answer
            return Answer.IN_PROGRESS
        if result.exit_code in _ABSENT:
            return Answer.ABSENT
        if result.exit_code in _IN_PROGRESS:
            return Answer.IN_PROGRESS
        if result.exit_code:
            raise _refused("bootout", result)
        return Answer.DONE

    async def kickstart(self, target: Target) -> Answer:
        """Start a loaded job now, whatever launchd waits for. One that runs is left alone."""
        result = await self._call("kickstart", target.service)
        if result.exit_code in _ABSENT:
            return Answer.ABSENT
        if result.exit_code in _IN_PROGRESS:
            return Answer.IN_PROGRESS
        if result.exit_code:
            raise _refused("kickstart", result)
        return Answer.DONE

    async def enable(self, target: Target) -> None:
        """Lift a `launchctl disable` that was left on the service: bootstrap refuses such a job without a reason."""
        result = await self._call("enable", target.service)
        if result.exit_code:
            raise _refused("enable", result)

    async def _call(self, *arguments: str) -> CommandResult:
        command = Command((self._program, *arguments), TIMEOUT_S)
        return await self._runner.run(command, check=False)


def parse_job(text: str) -> Job:
    """Read what `launchctl print` says of a job. Its layout is no interface: what is missing stays empty."""
    fields = dict(reversed(_FIELD.findall(text)))  # the first of a name is the job's own
    pid, runs = fields.get("pid", ""), fields.get("runs", "")
    return Job(
        state=fields.get("state", "unknown"),
        pid=int(pid) if pid.isdecimal() else None,
        runs=int(runs) if runs.isdecimal() else 0,
        last_exit=fields.get("last exit code", ""),
        program=fields.get("program", ""),
        path=fields.get("path", ""),
    )


def _refused(verb: str, result: CommandResult) -> ServiceError:
    said = (result.stderr.strip() or result.stdout.strip()).decode(errors="replace")
    return ServiceError(
        f"launchctl {verb} ended with {result.exit_code}: {said or 'it said nothing'}",
        remedy=_REMEDIES.get(result.exit_code, "see `launchctl error " + str(result.exit_code) + "`"),
    )
