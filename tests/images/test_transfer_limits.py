"""Fewer requests at once while the registry is overloaded, and all of them again when it is not."""

from __future__ import annotations

import asyncio

from agent.images.transfer_limits import StreamLimiter


async def most_at_once(streams: StreamLimiter, jobs: int) -> int:
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


async def test_as_many_as_allowed_and_no_more() -> None:
    assert await most_at_once(StreamLimiter(8), 30) == 8
    assert await most_at_once(StreamLimiter(8), 3) == 3


async def test_overload_halves_and_success_restores() -> None:
    streams = StreamLimiter(8)
    streams.record_overload()
    assert await most_at_once(streams, 30) == 4
    for _ in range(10):
        streams.record_overload()
    assert await most_at_once(streams, 10) == 1
    for _ in range(40):
        streams.record_success()
    assert await most_at_once(streams, 30) == 8


async def test_who_waits_is_let_in_when_the_limit_grows() -> None:
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


async def test_a_cancelled_waiter_takes_no_slot() -> None:
    streams = StreamLimiter(1)
    async with streams.slot():
        waiter = asyncio.create_task(most_at_once(streams, 1))
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
    assert await asyncio.wait_for(most_at_once(streams, 2), 1) == 1
