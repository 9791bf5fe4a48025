"""The steps of `hearth service`. Each can be repeated, and none ends a VM.

An upgrade unloads the old job, waits until its agent has ended, and loads the new job; its agent adopts the VMs. If
the new job cannot be loaded, the old one is restored.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from agent.domain.errors import HearthError
from agent.host.service.errors import ServiceError, ServiceMissingError
from agent.host.service.launchctl import Job, RequestOutcome
from agent.processes.command import Command, ProgramMissingError

if TYPE_CHECKING:
    from pathlib import Path

    from agent.host.service.launchctl import Launchctl
    from agent.host.service.target import Target
    from agent.processes.command import CommandRunner

UNLOAD_TIMEOUT_S: Final = 45.0
"""Time that a job gets to end: its ExitTimeOut of 30 s, and time for launchd."""
START_TIMEOUT_S: Final = 20.0
"""Time that launchd gets to start a job: its ThrottleInterval, and a margin."""
POLL_S: Final = 0.2
LINT_S: Final = 10.0


class Service:
    """The job of Hearth in one domain of launchd."""

    def __init__(self, target: Target, launchctl: Launchctl, runner: CommandRunner) -> None:
        self.target = target
        self._launchctl = launchctl
        self._runner = runner

    async def find_job(self) -> Job | None:
        """Return the loaded job, or None. Raises `ServiceError`."""
        return await self._launchctl.find_job(self.target)

    async def install(self, plist: bytes, newsyslog: str) -> tuple[bool, list[str]]:
        """Install and start this job. Return whether anything changed, and notes for the user.

        Raises `ServiceError`; then the previous job is restored.
        """
        notes = self._install_newsyslog(newsyslog)
        before = _read(self.target.plist)
        job = await self.find_job()
        if before == plist and job is not None and job.pid is not None:
            return False, notes
        await self._write(plist)
        try:
            await self._unload(job)
            await self._load()
        except HearthError:
            if before is not None and before != plist:
                await self._restore(before)
            raise
        return True, notes

    async def uninstall(self) -> bool:
        """Unload the job and remove its files. Return False if there was none. VMs keep running."""
        job = await self.find_job()
        await self._unload(job)
        had = self.target.plist.exists()
        self.target.plist.unlink(missing_ok=True)
        with suppress(PermissionError):  # the file belongs to root, and is harmless without the job
            self.target.newsyslog.unlink(missing_ok=True)
        return had or job is not None

    async def start(self) -> bool:
        """Start the installed job. Return False if it runs already. Raises `ServiceMissingError`."""
        self._require_installed()
        job = await self.find_job()
        if job is not None and job.pid is not None:
            return False
        if job is not None and await self._launchctl.kickstart(self.target) is not RequestOutcome.ABSENT:
            await self._wait_until_running()
        else:
            await self._load()
        return True

    async def stop(self) -> bool:
        """Unload the job until the next start, boot or login. Return False if it was not loaded. VMs keep running."""
        self._require_installed()
        job = await self.find_job()
        await self._unload(job)
        return job is not None

    async def restart(self) -> None:
        """Stop the job with SIGTERM, wait for its end, and start it. VMs keep running."""
        await self.stop()
        await self._load()

    def _require_installed(self) -> None:
        if not self.target.plist.exists():
            raise ServiceMissingError(
                f"{self.target.plist} does not exist", remedy="run `hearth service install` first, or name another --as"
            )

    async def _unload(self, job: Job | None) -> None:
        if job is None:
            return
        await self._launchctl.bootout(self.target)
        deadline_s = time.monotonic() + UNLOAD_TIMEOUT_S
        while await self.find_job() is not None:
            if time.monotonic() > deadline_s:
                raise ServiceError(
                    f"{self.target.service} has not ended {UNLOAD_TIMEOUT_S:g} s after the request",
                    remedy=f"check `launchctl print {self.target.service}` and the log of the agent",
                )
            await asyncio.sleep(POLL_S)

    async def _load(self) -> None:
        """Load the job and wait until it runs. Retry while launchd still processes an earlier request."""
        await self._launchctl.enable(self.target)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while await self._launchctl.bootstrap(self.target, self.target.plist) is RequestOutcome.IN_PROGRESS:
            if time.monotonic() > deadline_s:
                raise ServiceError(
                    f"launchd still processes an earlier request for {self.target.service} after {START_TIMEOUT_S:g} s"
                )
            await asyncio.sleep(POLL_S)
        await self._wait_until_running()

    async def _wait_until_running(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        job = await self.find_job()
        while job is None or job.pid is None:
            if time.monotonic() > deadline_s:
                ended = f"; its last exit code is {job.last_exit}" if job and job.last_exit else ""
                raise ServiceError(
                    f"{self.target.service} does not run {START_TIMEOUT_S:g} s after it was loaded{ended}",
                    remedy=f"check {self.target.logs}/launchd.err.log and `launchctl print {self.target.service}`",
                )
            await asyncio.sleep(POLL_S)
            job = await self.find_job()

    async def _restore(self, before: bytes) -> None:
        _write_file(self.target.plist, before, 0o644, self.target)
        with suppress(HearthError):  # the caller reports the first error
            await self._load()

    async def _write(self, plist: bytes) -> None:
        """Write the plist atomically, after plutil, if present, accepted it."""
        _make_folder(self.target.plist.parent, self.target, mode=0o755)
        _make_folder(self.target.logs, self.target, mode=0o750)
        draft = self.target.plist.with_suffix(".draft")
        draft.write_bytes(plist)
        try:
            await self._runner.run(Command(("plutil", "-lint", "-s", str(draft)), LINT_S))
        except ProgramMissingError:
            pass  # without plutil: plistlib has read the plist back when it was rendered
        finally:
            draft.unlink()
        _write_file(self.target.plist, plist, 0o644, self.target)

    def _install_newsyslog(self, text: str) -> list[str]:
        path = self.target.newsyslog
        if _read(path) == text.encode():
            return []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            path.chmod(0o644)
        except PermissionError:
            logs, remedy = self.target.logs, "run this once with sudo"
            return [f"launchd's output in {logs} is not rotated, because only root can write {path}: {remedy}"]
        return []


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _write_file(path: Path, content: bytes, mode: int, target: Target) -> None:
    """Write a file atomically. launchd refuses plists that other users own or can write."""
    temporary = path.with_suffix(".fresh")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with open(descriptor, "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    _set_owner(temporary, target)
    temporary.replace(path)


def _make_folder(path: Path, target: Target, *, mode: int) -> None:
    """Create a folder that the user of the job owns. Leave an existing folder unchanged."""
    if not path.exists():
        path.mkdir(parents=True, mode=mode)
        _set_owner(path, target)


def _set_owner(path: Path, target: Target) -> None:
    if os.geteuid() == 0:
        os.chown(path, target.account.uid, target.account.gid)
