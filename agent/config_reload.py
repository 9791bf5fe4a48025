"""Reload of the configuration file while the agent runs: changes are validated and, if possible, applied immediately.

An invalid file leaves the configuration unchanged and raises a condition. Changed keys that need a restart are named in
another condition.
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
    """Watches the configuration file. `appliers` maps each live key to the function that applies its new value."""

    def __init__(
        self, path: Path, running: Config, appliers: Mapping[str, Callable[[Config], None]], board: ConditionBoard
    ) -> None:
        self._path = path
        self._started_with = running
        self._running = running
        self._appliers = appliers
        self._board = board

    async def watch(self) -> None:
        """Watch the file until cancelled."""
        await watch_file(self._path, self.reload)

    async def reload(self) -> None:
        """Read the file, apply its live keys, and post or clear the two conditions."""
        try:
            new = await asyncio.to_thread(load_config, self._path)
        except ConfigError as error:
            message = f"{error}. The agent keeps the previous configuration"
            self._board.post_problem("ConfigurationValid", time.time(), reason="Refused", message=message)
            return
        self._board.post_problem("ConfigurationValid", time.time())
        for key in changed_keys(self._running, new):
            if key in self._appliers:
                self._appliers[key](new)
                log.info("configuration-applied", key=key)
        self._running = new
        pending = [key for key in changed_keys(self._started_with, new) if key not in self._appliers]
        message = f"changed keys that need a restart of the agent (VMs keep running): {', '.join(pending)}"
        reason = "KeysChanged" if pending else ""
        self._board.post_problem("ConfigurationApplied", time.time(), reason=reason, message=message if pending else "")


def changed_keys(old: Config, new: Config) -> list[str]:
    """Return the dotted keys whose values differ between two configurations."""
    before, after = dict(_flatten(old)), dict(_flatten(new))
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def _flatten(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if hasattr(type(value), "model_fields"):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
