"""The executor: runs effects concurrently, never two on one resource.

Effects record their expected failures as facts, and the planner backs off. An effect that raises has a defect and
records nothing, so the planner would plan it again immediately: the executor keeps its resource busy for a while.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from agent.domain.text import clip

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.domain.actions import Effect

log = structlog.get_logger()

_LOGGED_FIELDS: Final = {"vm": "vm", "image": "image", "digest": "image"}
"""The fields of an effect that every log line of its task carries, with their names in the log."""
FIRST_HOLD_S: Final = 5.0
LONGEST_HOLD_S: Final = 300.0
"""How long a resource stays busy after its effect raised: doubled at each further time, up to the longest."""


@dataclass(frozen=True, slots=True)
class _Defect:
    """The last error that an effect raised on a resource, and the delay that followed it."""

    error: str
    delay_s: float


class Executor:
    """Starts effects and holds the busy resources. `on_end` is called whenever an effect ends, however it ended."""

    def __init__(
        self,
        perform: Callable[[Effect], Awaitable[None]],
        on_end: Callable[[], None],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._perform = perform
        self._on_end = on_end
        self._sleep = sleep
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._defects: dict[str, _Defect] = {}

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
            self._defects.pop(effect.resource, None)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # a defect in one effect must not end the reconciler
            defect, is_known = self._count_defect(effect.resource, clip(f"{kind}: {error!r}"))
            if not is_known:
                log.exception("action-failed", action=kind, resource=effect.resource, delay_s=defect.delay_s)
            await self._sleep(defect.delay_s)
        finally:
            self._tasks.pop(effect.resource, None)
            self._on_end()

    def _count_defect(self, resource: str, error: str) -> tuple[_Defect, bool]:
        """Return the defect with its delay, and whether the last effect on the resource raised the same error."""
        last = self._defects.get(resource)
        delay_s = min(LONGEST_HOLD_S, 2 * last.delay_s) if last else FIRST_HOLD_S
        self._defects[resource] = defect = _Defect(error, delay_s)
        return defect, last is not None and last.error == error
