"""A guard against processes that a test leaves behind: they are ended, and the test fails.

A process is the test's when it descends from the test process, or has its mark in the environment: a detached process
is a child of init. A process whose environment was replaced and that is detached is not found.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

MARK: Final = "HEARTH_TEST_PROCESS"
"""The environment variable that all descendants of a test process inherit: its pid."""
GRACE_S: Final = 3.0
"""Time for processes that were ended, and are not yet gone, when the test is over."""
_SHARED: Final = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
"""Helpers of the standard library that live as long as the test process."""


def pytest_configure(config: pytest.Config) -> None:
    """Mark this process, before it starts any other."""
    os.environ[MARK] = str(os.getpid())


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Fail the test when processes that it started are left after all its other fixtures have cleaned up."""
    before = frozenset(psutil.pids())
    yield
    if left := end_leftovers(before):
        pytest.fail(f"processes are left, and were killed: {'; '.join(left)}", pytrace=False)


def end_leftovers(before: frozenset[int]) -> list[str]:
    """Kill this process's descendants that are not in `before`; return their command lines."""
    found = [process for pid in set(psutil.pids()) - before if (process := _ours(pid, before)) is not None]
    _, alive = psutil.wait_procs(found, GRACE_S) if found else ([], [])
    left = []
    for process in alive:
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                left.append(f"{process.pid} {' '.join(process.cmdline())[:300]}")
                process.kill()
        except psutil.NoSuchProcess:
            continue
    return left


def _ours(pid: int, before: frozenset[int]) -> psutil.Process | None:
    """Return a process if the test that ran since `before` started it, and it still runs."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE or any(name in " ".join(process.cmdline()) for name in _SHARED):
            return None
        for parent in process.parents():
            if parent.pid == os.getpid():
                return process
            if parent.pid in before and _has_mark(parent):
                return None  # started by a process of a session's fixture
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    return process if _has_mark(process) else None


def _has_mark(process: psutil.Process) -> bool:
    try:
        return process.environ().get(MARK) == str(os.getpid())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
