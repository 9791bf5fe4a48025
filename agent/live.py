"""The configuration file while the agent runs: a change is validated and, where it can be, applied at once.

A file that cannot be used leaves the configuration in force and raises a condition; so does a change of a key that only
a restart can apply, by name.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

import structlog
from watchfiles import awatch

from agent.config import ConfigError, load_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from pydantic import BaseModel

    from agent.config import Config
    from agent.engine.conditions import ConditionBoard

log = structlog.get_logger()
logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it counts every change aloud

REWATCH_S: Final = 5.0


class LiveConfig:
    """Follows the configuration file. `appliers` holds, by key, what applies a new value while the agent runs."""

    def __init__(
        self, path: Path, running: Config, appliers: Mapping[str, Callable[[Config], None]], board: ConditionBoard
    ) -> None:
        self._path = path
        self._started_with = running
        self._running = running
        self._appliers = appliers
        self._board = board

    async def watch(self) -> None:
        """Follow the file until cancelled."""
        while True:
            try:
                async for changes in awatch(self._path.parent, recursive=False, debounce=50, step=200):
                    if any(changed.endswith(self._path.name) for _, changed in changes):
                        await self.reload()
            except (OSError, RuntimeError) as error:  # what watchfiles raises when the folder goes away
                log.warning("configuration-not-watched", error=str(error))
                await asyncio.sleep(REWATCH_S)
            else:
                return  # cancelled, though anyio's scopes may keep that to themselves

    async def reload(self) -> None:
        """Read the file, apply what can be applied, and tell what cannot."""
        try:
            new = await asyncio.to_thread(load_config, self._path)
        except ConfigError as error:
            message = f"{error}. The configuration in force stays"
            self._board.post_problem("ConfigurationValid", time.time(), reason="Refused", message=message)
            return
        self._board.post_problem("ConfigurationValid", time.time())
        for key in changed_keys(self._running, new):
            if key in self._appliers:
                self._appliers[key](new)
                log.info("configuration-applied", key=key)
        self._running = new
        waiting = [key for key in changed_keys(self._started_with, new) if key not in self._appliers]
        message = f"these keys changed and need a restart of the agent (VMs stay): {', '.join(waiting)}"
        reason = "KeysChanged" if waiting else ""
        self._board.post_problem("ConfigurationApplied", time.time(), reason=reason, message=message if waiting else "")


def changed_keys(old: Config, new: Config) -> list[str]:
    """Return the dotted keys whose values differ between two configurations."""
    before, after = dict(_flat(old)), dict(_flat(new))
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def _flat(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if hasattr(type(value), "model_fields"):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
