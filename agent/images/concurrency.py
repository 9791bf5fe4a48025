"""Helpers for concurrent work: parallel coroutines with one error, and retries while the store is locked."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, TypeVarTuple

from agent.images.errors import StoreBusyError
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

_Arguments = TypeVarTuple("_Arguments")

BUSY_DEADLINE_S: Final = 3600.0
_BUSY_PERIOD_S: Final = 0.2


async def retry_while_busy(function: Callable[[*_Arguments], None], *arguments: *_Arguments) -> None:
    """Run `function` in a thread, and retry while it raises `StoreBusyError`, for `BUSY_DEADLINE_S` at most.

    A single attempt is short, so the caller can be cancelled at any time.
    """
    deadline_s = time.monotonic() + BUSY_DEADLINE_S
    while True:
        try:
            return await run_in_thread(function, *arguments)
        except StoreBusyError:
            if time.monotonic() >= deadline_s:
                raise
            await asyncio.sleep(_BUSY_PERIOD_S)


async def run_all_or_raise_first(jobs: Iterable[Coroutine[None, None, None]]) -> None:
    """Run all jobs in parallel. On the first failure cancel the others, wait for them, and raise that one error."""
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(job)
    except BaseExceptionGroup as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
