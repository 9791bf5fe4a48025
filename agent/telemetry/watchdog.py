"""A thread that ends the process when its event loop is blocked, after it logged the stacks.

A blocked event loop handles no request and no signal, so the loop itself cannot recover. The service manager restarts
the agent, which adopts the VMs, because they outlive it. Before the process ends, one log line records the stacks of
all tasks and threads.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import threading
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EX_SOFTWARE: Final = 70
"""Exit code of an agent with a blocked event loop, from sysexits(3)."""
_TICK_S: Final = 1.0
_REPORT_S: Final = 5.0
"""Time limit for writing the report: a disk that hangs must not keep the process alive."""


class Watchdog:
    """Watches the event loop while this context manager is active.

    `beat` returns a value that changes while the loop works. The time without a change is counted in ticks of the
    watchdog and not by a clock: while the process was stopped or the machine slept, the loop was not blocked.
    """

    def __init__(self, beat: Callable[[], float], *, limit_s: float, report: Path) -> None:
        self._beat = beat
        self._limit_s = limit_s
        self._report_path = report
        self._stopped = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(_TICK_S)

    def _watch(self) -> None:
        tick_s = min(_TICK_S, self._limit_s / 4)
        last, unchanged_s = self._beat(), 0.0
        while not self._stopped.wait(tick_s):
            beat = self._beat()
            unchanged_s = unchanged_s + tick_s if beat == last else 0.0
            last = beat
            if unchanged_s >= self._limit_s:
                self._end(unchanged_s)

    def _end(self, unchanged_s: float) -> None:
        reporting = threading.Thread(target=self._report, args=[unchanged_s], daemon=True)
        reporting.start()
        reporting.join(_REPORT_S)
        os._exit(EX_SOFTWARE)

    def _report(self, unchanged_s: float) -> None:
        line = {
            "ts": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": "critical",
            "event": "loop-stuck",
            "duration_s": unchanged_s,
            "threads": _threads(),
            "tasks": _tasks(self._loop) if self._loop else {},
        }
        with self._report_path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")


def _threads() -> dict[str, str]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        names.get(ident, str(ident)): "".join(traceback.format_stack(frame))
        for ident, frame in sys._current_frames().items()
    }


def _tasks(loop: asyncio.AbstractEventLoop) -> dict[str, str]:
    stacks = {}
    for task in asyncio.all_tasks(loop):
        text = io.StringIO()
        task.print_stack(file=text)
        stacks[task.get_name()] = text.getvalue()
    return stacks
