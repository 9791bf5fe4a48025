"""The limit of parallel requests, which is reduced while the registry is overloaded."""

from __future__ import annotations

import asyncio

from agent.images.transfer_limits import StreamLimiter


async def max_parallel(streams: StreamLimiter, jobs: int) -> int:
    active = most = 0

    async def job() -> None:
        nonlocal active, most
        async with streams.slot():
            active += 1
            most = max(most, active)
            for _ in range(5):
                await asyncio.sleep(0)
            active -= 1

    await asyncio.gather(*(job() for _ in range(jobs)))
    return most


async def test_parallel_requests_are_limited() -> None:
    assert await max_parallel(StreamLimiter(8), 30) == 8
    assert await max_parallel(StreamLimiter(8), 3) == 3


async def test_overload_halves_the_limit_and_success_restores_it() -> None:
    streams = StreamLimiter(8)
    streams.record_overload()
    assert await max_parallel(streams, 30) == 4
    for _ in range(10):
        streams.record_overload()
    assert await max_parallel(streams, 10) == 1
    for _ in range(40):
        streams.record_success()
    assert await max_parallel(streams, 30) == 8


async def test_waiter_is_admitted_when_a_slot_is_free() -> None:
    streams = StreamLimiter(2)
    streams.record_overload()
    inside: list[int] = []
    leave = asyncio.Event()

    async def job(number: int) -> None:
        async with streams.slot():
            inside.append(number)
            await leave.wait()

    jobs = [asyncio.create_task(job(number)) for number in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert inside == [0]
    leave.set()
    await asyncio.gather(*jobs)
    assert inside == [0, 1, 2]


async def test_cancelled_waiter_takes_no_slot() -> None:
    streams = StreamLimiter(1)
    async with streams.slot():
        waiter = asyncio.create_task(max_parallel(streams, 1))
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
    assert await asyncio.wait_for(max_parallel(streams, 2), 1) == 1
