"""Work in threads: results, errors, context, and cancellation that waits for the thread."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from agent.processes.threads import run_in_thread

LIMIT_S = 10.0


class BlockedWork:
    """Work that blocks its thread until `release` is set."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.started = threading.Event()
        self.release = threading.Event()
        self.ended = False

    def run(self) -> str:
        self.started.set()
        assert self.release.wait(LIMIT_S)
        self.ended = True
        if self.error is not None:
            raise self.error
        return "made"


async def cancel_and_settle(call: asyncio.Task[str], times: int) -> None:
    for _ in range(times):
        call.cancel()
        for _ in range(5):  # enough passes of the event loop to deliver the cancellation
            await asyncio.sleep(0)
        assert not call.done()


async def test_thread_returns_the_result_of_its_function() -> None:
    assert await run_in_thread(divmod, 7, 2) == (3, 1)


async def test_thread_error_reaches_the_caller() -> None:
    def fail() -> None:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        await run_in_thread(fail)


async def test_thread_sees_the_context_variables_of_its_caller() -> None:
    variable = contextvars.ContextVar("variable", default="")
    variable.set("of the caller")
    assert await run_in_thread(variable.get) == "of the caller"


async def test_thread_belongs_to_the_given_executor() -> None:
    with ThreadPoolExecutor(1, thread_name_prefix="ours") as executor:
        thread = await run_in_thread(threading.current_thread, executor=executor)
    assert thread.name.startswith("ours")


@pytest.mark.parametrize("cancellations", [1, 2, 3])
async def test_caller_waits_for_its_thread_when_cancelled(cancellations: int) -> None:
    work, results = BlockedWork(), list[str]()
    call = asyncio.create_task(run_in_thread(work.run, if_cancelled=results.append))
    await asyncio.to_thread(work.started.wait, LIMIT_S)
    await cancel_and_settle(call, cancellations)
    work.release.set()
    await asyncio.wait([call], timeout=LIMIT_S)
    assert call.cancelled()
    assert work.ended
    assert results == ["made"]


@pytest.mark.parametrize("cancellations", [1, 2, 3])
async def test_caller_is_cancelled_when_its_thread_fails(cancellations: int) -> None:
    """The error is neither raised in place of the cancellation nor reported as lost."""
    lost = list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: lost.append(context))
    work, results = BlockedWork(OSError("no space")), list[str]()
    call = asyncio.create_task(run_in_thread(work.run, if_cancelled=results.append))
    await asyncio.to_thread(work.started.wait, LIMIT_S)
    await cancel_and_settle(call, cancellations)
    work.release.set()
    await asyncio.wait([call], timeout=LIMIT_S)
    assert call.cancelled()
    assert results == []
    del call
    assert lost == []


async def test_thread_is_waited_for_when_the_callers_time_is_up() -> None:
    work = BlockedWork()
    expired = asyncio.Event()

    async def call() -> None:
        async with asyncio.timeout(0) as limit:
            expired.set()
            await run_in_thread(work.run)
        raise AssertionError(f"{limit} did not expire")

    task = asyncio.create_task(call())
    await expired.wait()
    await asyncio.to_thread(work.started.wait, LIMIT_S)
    assert not task.done()
    work.release.set()
    with pytest.raises(TimeoutError):
        await task
    assert work.ended
