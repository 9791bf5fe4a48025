"""Notification of process exits by the kernel: pidfds on Linux, kqueue on macOS.

It works for children and for adopted processes. The child watchers of asyncio know only children that asyncio started;
VMs are not started by asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import select
import sys
from typing import TYPE_CHECKING, Protocol

from agent.processes.process import ProcessIdentity, identify

if TYPE_CHECKING:
    from collections.abc import Callable

    ExitCallback = Callable[[int | None], None]


class ExitWatcher(Protocol):
    """Calls back on the event loop when a process ends. Use it only on that loop."""

    def watch(self, process: ProcessIdentity, on_exit: ExitCallback) -> None:
        """Call `on_exit` once when `process` ends, or in the next pass of the event loop if it has ended already.

        `on_exit` gets the exit code (negative: the signal), or None if the process is not a child of the agent.
        Children are reaped.
        """

    def close(self) -> None:
        """Stop watching. The processes continue."""


if sys.platform == "linux":

    class PidfdWatcher:
        """Watches with pidfds: a pidfd is readable when its process has ended, child or not (pidfd_open(2))."""

        def __init__(self) -> None:
            self._fds: set[int] = set()

        def watch(self, process: ProcessIdentity, on_exit: ExitCallback) -> None:
            """See `ExitWatcher`."""
            loop = asyncio.get_running_loop()
            try:
                fd = os.pidfd_open(process.pid)
            except ProcessLookupError:
                loop.call_soon(on_exit, None)
                return
            if identify(process.pid) != process:  # the pidfd keeps the pid from reuse: this pid was reused before
                os.close(fd)
                loop.call_soon(on_exit, None)
                return
            self._fds.add(fd)
            # An empty context: otherwise the log line of the exit has the context variables of the VM's start.
            contextvars.Context().run(loop.add_reader, fd, self._ended, fd, on_exit)

        def _ended(self, fd: int, on_exit: ExitCallback) -> None:
            code = None
            with contextlib.suppress(ChildProcessError):  # not a child of the agent: only its parent gets the code
                code = _code(os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG))
            self._forget(fd)
            on_exit(code)

        def _forget(self, fd: int) -> None:
            self._fds.remove(fd)
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)

        def close(self) -> None:
            """See `ExitWatcher`."""
            for fd in tuple(self._fds):
                self._forget(fd)

    def _code(ended: os.waitid_result | None) -> int | None:
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def create_exit_watcher() -> ExitWatcher:
        """Return the exit watcher for this platform."""
        return PidfdWatcher()

else:

    class KqueueWatcher:
        """Watches by kqueue's EVFILT_PROC and NOTE_EXIT (kqueue(2))."""

        def __init__(self) -> None:
            self._queue: select.kqueue | None = None
            self._watched: dict[int, ExitCallback] = {}

        def watch(self, process: ProcessIdentity, on_exit: ExitCallback) -> None:
            """See `ExitWatcher`."""
            loop = asyncio.get_running_loop()
            if self._queue is None:
                self._queue = select.kqueue()
                # An empty context: otherwise each exit is logged with the context variables of the first VM.
                contextvars.Context().run(loop.add_reader, self._queue.fileno(), self._ended)
            event = select.kevent(
                process.pid,
                filter=select.KQ_FILTER_PROC,
                flags=select.KQ_EV_ADD | select.KQ_EV_ONESHOT,
                fflags=select.KQ_NOTE_EXIT,
            )
            with contextlib.suppress(ProcessLookupError):
                self._queue.control([event], 0)
                if identify(process.pid) == process:
                    self._watched[process.pid] = on_exit
                    return
            loop.call_soon(_reap_and_notify, process.pid, on_exit, os.WNOHANG)  # it had ended before it was watched

        def _ended(self) -> None:
            assert self._queue is not None
            for event in self._queue.control(None, 64, 0):
                on_exit = self._watched.pop(event.ident, None)
                if on_exit is not None:
                    _reap_and_notify(
                        event.ident, on_exit, 0
                    )  # blocks: NOTE_EXIT comes shortly before the child can be reaped

        def close(self) -> None:
            """See `ExitWatcher`."""
            self._watched.clear()
            if self._queue is not None:
                asyncio.get_running_loop().remove_reader(self._queue.fileno())
                self._queue.close()
                self._queue = None

    def _reap_and_notify(pid: int, on_exit: ExitCallback, options: int) -> None:
        code = None
        with contextlib.suppress(ChildProcessError):  # not a child of the agent: only its parent gets the code
            reaped, status = os.waitpid(pid, options)
            code = os.waitstatus_to_exitcode(status) if reaped else None
        on_exit(code)

    def create_exit_watcher() -> ExitWatcher:
        """Return the exit watcher for this platform."""
        return KqueueWatcher()
