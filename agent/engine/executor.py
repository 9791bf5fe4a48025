"""The executor: runs effects concurrently, never two on one resource."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.domain.actions import Effect

log = structlog.get_logger()

_LOGGED_FIELDS: Final = {"vm": "vm", "image": "image", "digest": "image"}
"""The fields of an effect that every log line of its task carries, with their names in the log."""


class Executor:
    """Starts effects and holds the busy resources. `on_end` is called whenever an effect ends, however it ended."""

    def __init__(self, perform: Callable[[Effect], Awaitable[None]], on_end: Callable[[], None]) -> None:
        self._perform = perform
        self._on_end = on_end
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def busy(self) -> frozenset[str]:
        """The resources with an effect under way."""
        return frozenset(self._tasks)

    def start(self, effect: Effect) -> None:
        """Start an effect. Its resource must not be busy."""
        if effect.resource in self._tasks:
            raise RuntimeError(f"{effect.resource} is busy: the planner must not plan on it")
        name = f"{type(effect).__name__} {effect.resource}"
        self._tasks[effect.resource] = asyncio.create_task(self._run(effect), name=name)

    async def stop(self) -> None:
        """Cancel the running effects and wait for them. The next agent continues from their recorded intents."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, effect: Effect) -> None:
        kind = type(effect).__name__
        fields = {name: value for field, name in _LOGGED_FIELDS.items() if (value := getattr(effect, field, None))}
        try:
            with structlog.contextvars.bound_contextvars(action=kind, **fields):
                await self._perform(effect)
        except asyncio.CancelledError:
            raise
        except Exception:  # a defect in one effect must not end the reconciler
            log.exception("action-failed", action=kind, resource=effect.resource)
        finally:
            self._tasks.pop(effect.resource, None)
            self._on_end()
