"""Running pulls, one task per image version, however many callers wait for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from agent.images.contract import PullProgress
    from agent.images.pull_progress import PullProgressTracker

    PullStart = tuple[Coroutine[None, None, None], PullProgressTracker]


@dataclass(slots=True)
class _SharedPull:
    task: asyncio.Task[None]
    tracker: PullProgressTracker
    waiters: int = 0


class SharedPulls:
    """The running pulls by digest. Callers of the same digest share one task, and the last caller to leave ends it."""

    def __init__(self) -> None:
        self._pulls: dict[str, _SharedPull] = {}

    async def join(self, digest: str, start: Callable[[], PullStart]) -> None:
        """Wait for the pull of `digest`; `start` makes its coroutine and its tracker if none is running.

        If the last waiting caller is cancelled, the pull is cancelled too, and its end is awaited.
        """
        pull = self._pulls.get(digest)
        if pull is None:
            pull = self._add(digest, *start())
        pull.waiters += 1
        try:
            await asyncio.shield(pull.task)
        finally:
            pull.waiters -= 1
            if not pull.waiters and not pull.task.done():
                pull.task.cancel()
                await asyncio.gather(pull.task, return_exceptions=True)

    def progress(self) -> tuple[PullProgress, ...]:
        """Return the progress of every running pull."""
        return tuple(pull.tracker.snapshot() for pull in self._pulls.values())

    async def cancel_all(self) -> None:
        """Cancel all running pulls and wait until they end."""
        tasks = [pull.task for pull in self._pulls.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _add(self, digest: str, pull: Coroutine[None, None, None], tracker: PullProgressTracker) -> _SharedPull:
        task = asyncio.create_task(pull, name=f"pull {digest}")
        task.add_done_callback(lambda _: self._pulls.pop(digest, None))
        self._pulls[digest] = _SharedPull(task, tracker)
        return self._pulls[digest]
