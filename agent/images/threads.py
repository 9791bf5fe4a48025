"""Work at the same time, on and off the event loop, whose end is always waited for."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from agent.images.errors import StoreBusyError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from concurrent.futures import Executor

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

BUSY_DEADLINE_S: Final = 3600.0
_BUSY_PERIOD_S: Final = 0.2


async def in_thread(
    executor: Executor | None,
    function: Callable[_Arguments, _Result],
    *args: _Arguments.args,
    **kwargs: _Arguments.kwargs,
) -> _Result:
    """Run `function` in a thread; when cancelled, let it end first.

    A thread cannot be stopped. What it works on - a descriptor, a buffer, a directory - must not be closed, reused or
    removed under it, so a cancelled caller goes on only when the thread is done.
    """
    future = asyncio.get_running_loop().run_in_executor(executor, lambda: function(*args, **kwargs))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue
        if not future.cancelled():
            future.exception()  # looked at, so that it is not reported as lost
        raise


async def when_free(function: Callable[_Arguments, None], *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> None:
    """Run `function` in a thread, again and again while it says that the store is busy, for `BUSY_DEADLINE_S` at most.

    No single try takes long, so whoever waits here can be cancelled at any time.
    """
    deadline_s = time.monotonic() + BUSY_DEADLINE_S
    while True:
        try:
            return await in_thread(None, function, *args, **kwargs)
        except StoreBusyError:
            if time.monotonic() >= deadline_s:
                raise
            await asyncio.sleep(_BUSY_PERIOD_S)


async def all_or_first_error(jobs: Iterable[Coroutine[None, None, None]]) -> None:
    """Run all at once; on the first failure cancel the others, wait for them, and raise that one error plainly."""
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(job)
    except BaseExceptionGroup as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
