"""The configuration file while the agent runs: a change is validated and, where it can be, applied at once.

A file that cannot be used leaves the configuration in force and raises a condition; so does a change of a key that only
a restart can apply, by name.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import structlog

from agent.config import ConfigError, load_config
from agent.config.file_watch import watch_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from pydantic import BaseModel

    from agent.config import Config
    from agent.engine.conditions import ConditionBoard

log = structlog.get_logger()


class ConfigReloader:
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
        await watch_file(self._path, self.reload)

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
