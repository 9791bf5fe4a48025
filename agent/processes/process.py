"""Processes that outlive the agent: starting them detached, identifying them, and signalling them.

A pid alone does not identify a process, because the kernel reuses it. A pid with the start time of its process is
unique until the host reboots.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if sys.platform != "linux":
    import psutil

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process of this boot. `started` is the start time in a unit of the kernel; use it only for comparison."""

    pid: int
    started: int


def identify(pid: int) -> ProcessIdentity | None:
    """Return the identity of the process that has `pid` now, also of a zombie; None if there is none."""
    status = _read_status(pid)
    return ProcessIdentity(pid, status[0]) if status else None


def is_alive(process: ProcessIdentity) -> bool:
    """Whether exactly this process still runs. A zombie does not run."""
    return _read_status(process.pid) == (process.started, True)


if sys.platform == "linux":

    def _read_status(pid: int) -> tuple[int, bool] | None:
        """Return the start time and whether the process runs. Field 22 of /proc/PID/stat counts ticks since boot:
        unlike the wall-clock time of psutil, it does not change when the clock is set."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The name in parentheses can contain spaces and parentheses, so the fields after its end are counted.
        fields = stat[stat.rindex(b")") + 2 :].split()
        return int(fields[19]), fields[0] not in b"ZX"

    def kill(process: ProcessIdentity, number: signal.Signals) -> bool:
        """Signal exactly this process, never a later one with its pid. Return False if it has ended."""
        try:
            fd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return False
        try:
            if not is_alive(process):
                return False
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)
        return True

else:

    def _read_status(pid: int) -> tuple[int, bool] | None:
        """Return the start time (microseconds) and whether the process runs."""
        try:
            process = psutil.Process(pid)
            return int(process.create_time() * 1e6), process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None

    def kill(process: ProcessIdentity, number: signal.Signals) -> bool:
        """Signal this process if its pid was not reused. Return False if it has ended."""
        if not is_alive(process):
            return False
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            return False
        return True


class _Detached(subprocess.Popen[bytes]):
    """A child that outlives this object and the agent. An `ExitWatcher` waits for its exit."""

    def __del__(self) -> None:
        """Do nothing. `Popen` would warn that the child still runs, and reap it before its exit watcher does."""


def spawn_detached(
    argv: Sequence[str],
    *,
    output: Path,
    cwd: Path,
    pass_fds: Collection[int] = (),
    env: Mapping[str, str] | None = None,
) -> ProcessIdentity:
    """Start a program that does not depend on the agent: own session, no stdin, output appended to a file.

    Signals to the agent's process group and the end of the agent do not reach it, and no pipe connects the two. `env`
    is added to the environment of the agent. Blocks for the fork: call it in a thread. Raises `OSError` if it cannot be
    started.
    """
    with output.open("ab") as sink:
        child = _Detached(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, **env} if env else None,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )
    identity = identify(child.pid)
    if identity is None:  # it ended within microseconds, and an exit watcher has reaped it
        raise ChildProcessError(f"{argv[0]} ended immediately after its start")
    return identity
