"""Runs the effects of actions side by side, never two on one resource."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.domain.actions import Action

log = structlog.get_logger()

_ABOUT: Final = ("vm", "lease", "image")
"""What every line logged on the way names, so that the log tells the whole story of each."""


class Executor:
    """Starts effects and knows what is busy. `on_end` is called whenever one ends, however it ended."""

    def __init__(self, perform: Callable[[Action], Awaitable[None]], on_end: Callable[[], None]) -> None:
        self._perform = perform
        self._on_end = on_end
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def busy(self) -> frozenset[str]:
        """The resources with an effect under way."""
        return frozenset(self._tasks)

    def start(self, action: Action) -> None:
        """Start the effect of an action whose resource is not busy."""
        if action.resource in self._tasks:
            raise RuntimeError(f"{action.resource} is busy: the planner must not plan on it")
        name = f"{type(action).__name__} {action.resource}"
        self._tasks[action.resource] = asyncio.create_task(self._run(action), name=name)

    async def stop(self) -> None:
        """Cancel what is under way and wait for it. The journal holds the intents: the next start goes on with them."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, action: Action) -> None:
        kind = type(action).__name__
        try:
            about = {key: value for key in _ABOUT if (value := getattr(action, key, None))}
            with structlog.contextvars.bound_contextvars(action=kind, **about):
                await self._perform(action)
        except asyncio.CancelledError:
            raise
        except Exception:  # the last line of defence: a bug in one effect must not end the loop
            log.exception("action-failed", action=kind, resource=action.resource)
        finally:
            self._tasks.pop(action.resource, None)
            self._on_end()
