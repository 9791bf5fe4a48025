"""Filters for lines of the log: by level, by time, by pool, and by one VM or lease.

A VM is leased at most once, and a lease holds one VM, so some lines about a VM name only its lease, and some lines
about a lease name only its VM. The lines of a VM include renewals of its lease; the lines of a lease include those of
its VM from the grant on. Lines that name both ids connect them. Requests that named an id connect further lines.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_PATH: Final = re.compile(r"/v1/(vm|lease)s/([^/?]+)")


class Level(StrEnum):
    """The levels of log lines, in order of severity."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


_RANK: Final[Mapping[str, int]] = {level: rank for rank, level in enumerate((*Level, "critical"))}


@dataclass(slots=True)
class RelatedLines:
    """Matches the lines about the VM or lease whose id ends with `suffix`. Only the end of an id is unique."""

    key: Literal["vm", "lease"]
    suffix: str
    _other_ids: dict[str, str] = field(default_factory=dict)
    """Ids of the other kind, with the time from which their lines match."""

    _requests: set[str] = field(default_factory=set)

    def add_line(self, line: Mapping[str, Any]) -> None:
        """Learn the connected ids from a line. Lines must come in the order in which they were written."""
        ids = _ids(line)
        if not ids[self.key].endswith(self.suffix):
            return
        if request := line.get("request_id"):
            self._requests.add(str(request))
        if other := ids[self._other_key]:
            self._other_ids.setdefault(other, str(line.get("ts", "")) if self.key == "lease" else "")

    def can_match(self, raw: str) -> bool:
        """Return whether a raw line contains a connected id. Much faster than parsing the line."""
        return self.suffix in raw or any(name in raw for name in (*self._other_ids, *self._requests))

    def matches(self, line: Mapping[str, Any]) -> bool:
        """Return whether a line is about the VM or lease."""
        ids = _ids(line)
        from_ts = self._other_ids.get(ids[self._other_key])
        return (
            ids[self.key].endswith(self.suffix)
            or str(line.get("request_id")) in self._requests
            or (from_ts is not None and not ids[self.key] and str(line.get("ts", "")) >= from_ts)
        )

    @property
    def _other_key(self) -> Literal["vm", "lease"]:
        return "lease" if self.key == "vm" else "vm"


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Selects lines that meet all criteria. `since` is an ISO time; an empty one matches all times."""

    level: Level = Level.DEBUG
    pool: str = ""
    since: str = ""
    related: tuple[RelatedLines, ...] = ()

    def add_lines(self, lines: Iterable[str]) -> None:
        """Learn the connected ids from the lines, which must come oldest first."""
        for raw in lines:
            for related in self.related:
                if related.can_match(raw) and (line := _parse(raw)) is not None:
                    related.add_line(line)

    def __call__(self, raw: str) -> bool:
        """Return whether a raw line is selected. Lines that are not JSON are selected only without any criterion."""
        if not all(related.can_match(raw) for related in self.related):
            return False
        line = _parse(raw)
        if line is None:
            return self == LogFilter()
        for related in self.related:
            related.add_line(line)
        return (
            _RANK.get(str(line.get("level")), 0) >= _RANK[self.level]
            and str(line.get("ts", "")) >= self.since
            and (not self.pool or line.get("pool") == self.pool)
            and all(related.matches(line) for related in self.related)
        )


def _ids(line: Mapping[str, Any]) -> dict[str, str]:
    """Return the VM and the lease that a line names by its keys, or by the path of a request."""
    ids = {"vm": "", "lease": ""} | dict(_PATH.findall(str(line.get("path", ""))))
    return {key: str(line.get(key) or path) for key, path in ids.items()}


def _parse(raw: str) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None
