"""Blocking work in threads. A thread ends before its caller continues, also when the caller is cancelled."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

_Arguments = TypeVarTuple("_Arguments")
_Result = TypeVar("_Result")


async def run_in_thread(
    function: Callable[[*_Arguments], _Result],
    *arguments: *_Arguments,
    executor: Executor | None = None,
    if_cancelled: Callable[[_Result], object] | None = None,
) -> _Result:
    """Run a function in a thread and return its result. If the caller is cancelled, wait for the thread first.

    A thread cannot be cancelled. If it were abandoned, it could use a descriptor, buffer or directory that the caller
    has closed or removed, or create files and processes after the caller cleaned up. Therefore every cancellation, also
    a second and a third one, waits until the thread ends; then `if_cancelled` gets the result, unless the function
    raised, and `CancelledError` is raised. The function sees the caller's context variables.
    """
    context = contextvars.copy_context()
    future = asyncio.get_running_loop().run_in_executor(executor, context.run, function, *arguments)
    try:
        await asyncio.wait([future])
    except asyncio.CancelledError:
        await _wait_despite_cancellation(future)
        # Reading the exception marks it as handled, so that asyncio does not report it as lost.
        if not future.cancelled() and future.exception() is None and if_cancelled is not None:
            if_cancelled(future.result())
        raise
    return future.result()


async def _wait_despite_cancellation(future: asyncio.Future[_Result]) -> None:
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue
