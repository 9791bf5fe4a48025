"""The steps of `hearth service`: each may be repeated, and none ends a VM.

An upgrade takes the old agent out, waits until it is gone, and brings the new one in, which adopts the VMs. When the
new job cannot be loaded the old one is put back.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from agent.domain.errors import HearthError
from agent.host.service.errors import ServiceError, ServiceMissingError
from agent.host.service.launchctl import Answer, Job
from agent.processes.command import Command, ProgramMissingError

if TYPE_CHECKING:
    from pathlib import Path

    from agent.host.service.launchctl import Launchctl
    from agent.host.service.target import Target
    from agent.processes.command import CommandRunner

GONE_S: Final = 45.0
"""How long a job may take to end: its ExitTimeOut of 30 s, and launchd's own time."""
UP_S: Final = 20.0
"""How long launchd may take to start a job: its ThrottleInterval and some."""
LOOK_S: Final = 0.2
LINT_S: Final = 10.0


class Service:
    """Hearth's job at one place of launchd."""

    def __init__(self, target: Target, launchctl: Launchctl, runner: CommandRunner) -> None:
        self.target = target
        self._launchctl = launchctl
        self._runner = runner

    async def look(self) -> Job | None:
        """Return the job as launchd has it. Raises `ServiceError`."""
        return await self._launchctl.look(self.target)

    async def install(self, plist: bytes, newsyslog: str) -> tuple[bool, list[str]]:
        """Make launchd run this job. Returns whether anything changed, and what a person should know.

        Raises `ServiceError`; then the job that was there before is there again.
        """
        notes = self._install_newsyslog(newsyslog)
        before = _read(self.target.plist)
        job = await self.look()
        if before == plist and job is not None and job.pid is not None:
            return False, notes
        await self._write(plist)
        try:
            await self._take_out(job)
            await self._bring_in()
        except HearthError:
            if before is not None and before != plist:
                await self._put_back(before)
            raise
        return True, notes

    async def uninstall(self) -> bool:
        """Take the job out of launchd and remove its files. Returns False when there was none. VMs run on."""
        job = await self.look()
        await self._take_out(job)
        had = self.target.plist.exists()
        self.target.plist.unlink(missing_ok=True)
        with suppress(PermissionError):  # root's; it does no harm without the job
            self.target.newsyslog.unlink(missing_ok=True)
        return had or job is not None

    async def start(self) -> bool:
        """Start the installed job. Returns False when it runs already. Raises `ServiceMissingError`."""
        self._installed()
        job = await self.look()
        if job is not None and job.pid is not None:
            return False
        if job is not None and await self._launchctl.kickstart(self.target) is not Answer.ABSENT:
            await self._until_up()
        else:
            await self._bring_in()
        return True

    async def stop(self) -> bool:
        """Take the job out until the next start, boot or login. Returns False when it was not loaded. VMs run on."""
        self._installed()
        job = await self.look()
        await self._take_out(job)
        return job is not None

    async def restart(self) -> None:
        """Stop and start in order, so that the agent ends as SIGTERM lets it. VMs run on."""
        await self.stop()
        await self._bring_in()

    def _installed(self) -> None:
        if not self.target.plist.exists():
            raise ServiceMissingError(
                f"there is no {self.target.plist}", remedy="run `hearth service install` first, or name another --as"
            )

    async def _take_out(self, job: Job | None) -> None:
        if job is None:
            return
        await self._launchctl.bootout(self.target)
        deadline_s = time.monotonic() + GONE_S
        while await self.look() is not None:
            if time.monotonic() > deadline_s:
                raise ServiceError(
                    f"{self.target.service} is still there {GONE_S:g} s after it was told to end",
                    remedy=f"see `launchctl print {self.target.service}` and the agent's log",
                )
            await asyncio.sleep(LOOK_S)

    async def _bring_in(self) -> None:
        """Load the job and wait until it runs; as long as launchd is still busy with an earlier one, ask again."""
        await self._launchctl.enable(self.target)
        deadline_s = time.monotonic() + UP_S
        while await self._launchctl.bootstrap(self.target, self.target.plist) is Answer.IN_PROGRESS:
            if time.monotonic() > deadline_s:
                raise ServiceError(f"launchd was still busy with {self.target.service} after {UP_S:g} s")
            await asyncio.sleep(LOOK_S)
        await self._until_up()

    async def _until_up(self) -> None:
        deadline_s = time.monotonic() + UP_S
        job = await self.look()
        while job is None or job.pid is None:
            if time.monotonic() > deadline_s:
                ended = f"; it last ended with {job.last_exit}" if job and job.last_exit else ""
                raise ServiceError(
                    f"{self.target.service} does not run {UP_S:g} s after it was loaded{ended}",
                    remedy=f"see {self.target.logs}/launchd.err.log and `launchctl print {self.target.service}`",
                )
            await asyncio.sleep(LOOK_S)
            job = await self.look()

    async def _put_back(self, before: bytes) -> None:
        _place(self.target.plist, before, 0o644, self.target)
        with suppress(HearthError):  # the first error is the one to tell
            await self._bring_in()

    async def _write(self, plist: bytes) -> None:
        """Put the plist in place whole or not at all, once plutil, where there is one, finds it good."""
        _make_folder(self.target.plist.parent, self.target, mode=0o755)
        _make_folder(self.target.logs, self.target, mode=0o750)
        draft = self.target.plist.with_suffix(".draft")
        draft.write_bytes(plist)
        try:
            await self._runner.run(Command(("plutil", "-lint", "-s", str(draft)), LINT_S))
        except ProgramMissingError:
            pass  # a Mac without its plutil: the plist was read back by plistlib when it was made
        finally:
            draft.unlink()
        _place(self.target.plist, plist, 0o644, self.target)

    def _install_newsyslog(self, text: str) -> list[str]:
        path = self.target.newsyslog
        if _read(path) == text.encode():
            return []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            path.chmod(0o644)
        except PermissionError:
            where, mend = self.target.logs, "run this once with sudo"
            return [f"launchd's own output in {where} is not rotated, since only root may write {path}: {mend}"]
        return []


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _place(path: Path, content: bytes, mode: int, target: Target) -> None:
    """Write a file whole: launchd refuses plists that others own or may write to."""
    fresh = path.with_suffix(".fresh")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with open(descriptor, "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    _own(fresh, target)
    fresh.replace(path)


def _make_folder(path: Path, target: Target, *, mode: int) -> None:
    """Make a folder that the job's user owns, also where root makes it; one that is there stays as it is."""
    if not path.exists():
        path.mkdir(parents=True, mode=mode)
        _own(path, target)


def _own(path: Path, target: Target) -> None:
    if os.geteuid() == 0:
        os.chown(path, target.account.uid, target.account.gid)
