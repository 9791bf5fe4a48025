"""Processes that outlive the agent: started apart from it, told apart by pid and start time, killed without a doubt.

A pid alone names nobody: the kernel hands it out again. A pid with its start time names one process for as long as
the host is up.
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
    """One process of this boot. `started` is the kernel's own mark of its start, only good for comparing."""

    pid: int
    started: int


def identify(pid: int) -> ProcessIdentity | None:
    """Return the identity of the process that has `pid` now, a zombie included, or None when there is none."""
    seen = _look(pid)
    return ProcessIdentity(pid, seen[0]) if seen else None


def is_alive(process: ProcessIdentity) -> bool:
    """Whether that very process still runs. A zombie does not."""
    return _look(process.pid) == (process.started, True)


if sys.platform == "linux":

    def _look(pid: int) -> tuple[int, bool] | None:
        """Return start mark and whether it runs. Field 22 of /proc/PID/stat counts ticks since boot: unlike psutil's
        wall-clock time, it does not move when the clock is set."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The name in parentheses may hold anything, so fields are counted from its end.
        fields = stat[stat.rindex(b")") + 2 :].split()
        return int(fields[19]), fields[0] not in b"ZX"

    def kill(process: ProcessIdentity, number: signal.Signals) -> bool:
        """Signal that very process, never a later one with its pid. Returns False when it is gone."""
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

    def _look(pid: int) -> tuple[int, bool] | None:
        """Return start mark (microseconds) and whether it runs."""
        try:
            process = psutil.Process(pid)
            return int(process.create_time() * 1e6), process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None

    def kill(process: ProcessIdentity, number: signal.Signals) -> bool:
        """Signal that process, having checked that its pid was not handed on. Returns False when it is gone."""
        if not is_alive(process):
            return False
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            return False
        return True


class _Detached(subprocess.Popen[bytes]):
    """A child that is meant to outlive this object, and this agent. Its exit is waited for elsewhere (exits.py)."""

    def __del__(self) -> None:
        """Neither warn that it still runs, nor list it for subprocess to reap before its watcher does."""


def spawn_detached(
    argv: Sequence[str],
    *,
    output: Path,
    cwd: Path,
    pass_fds: Collection[int] = (),
    env: Mapping[str, str] | None = None,
) -> ProcessIdentity:
    """Start a program that shares nothing with the agent: own session, no stdin, output appended to a file.

    `env` is added to the agent's own environment. Neither a signal to the agent's process group nor the agent's death
    reaches it, and no pipe ties the two. Blocks for the fork: call it in a thread. Raises `OSError` when it cannot be
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
    if identity is None:  # reaped by someone else within microseconds: it ended at once
        raise ChildProcessError(f"{argv[0]} ended as soon as it was started")
    return identity
