"""Which lines of the log are wanted: by level, by time, by pool, and the whole story of one VM or lease.

A VM is leased at most once, and a lease holds one VM, so the story of one goes on in lines that name only the other: a
VM's story has its lease's renewals, and a lease's story has what became of its VM from the grant on. What ties them is
learnt from lines that name both; the requests in which they were named belong to the story too.
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
    """The levels of log lines, from chatty to grave."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


_RANK: Final[Mapping[str, int]] = {level: rank for rank, level in enumerate((*Level, "critical"))}


@dataclass(slots=True)
class Story:
    """The story of the VM or lease whose name ends with `end`: the end is what tells names apart."""

    key: Literal["vm", "lease"]
    end: str
    _bound: dict[str, str] = field(default_factory=dict)  # id of the other kind: the time from which on it counts
    _requests: set[str] = field(default_factory=set)

    def learn(self, line: Mapping[str, Any]) -> None:
        """Take in what a line ties to the story. Lines come in the order they were written in."""
        ids = _ids(line)
        if not ids[self.key].endswith(self.end):
            return
        if request := line.get("request_id"):
            self._requests.add(str(request))
        if other := ids[self._other]:
            self._bound.setdefault(other, str(line.get("ts", "")) if self.key == "lease" else "")

    def may_tell(self, raw: str) -> bool:
        """Whether a raw line could belong to the story: quick, so that only few lines are parsed."""
        return self.end in raw or any(name in raw for name in (*self._bound, *self._requests))

    def tells(self, line: Mapping[str, Any]) -> bool:
        """Whether a line belongs to the story."""
        ids = _ids(line)
        from_ts = self._bound.get(ids[self._other])
        return (
            ids[self.key].endswith(self.end)
            or str(line.get("request_id")) in self._requests
            or (from_ts is not None and not ids[self.key] and str(line.get("ts", "")) >= from_ts)
        )

    @property
    def _other(self) -> Literal["vm", "lease"]:
        return "lease" if self.key == "vm" else "vm"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which lines are wanted. Everything that is asked for must hold; `since` is an ISO time, empty for all."""

    level: Level = Level.DEBUG
    pool: str = ""
    since: str = ""
    stories: tuple[Story, ...] = ()

    def learn(self, lines: Iterable[str]) -> None:
        """Learn the stories from all the lines there are, oldest first."""
        for raw in lines:
            for story in self.stories:
                if story.may_tell(raw) and (line := _parsed(raw)) is not None:
                    story.learn(line)

    def __call__(self, raw: str) -> bool:
        """Whether a raw line is wanted. What is no JSON object is, as long as nothing is asked for."""
        if not all(story.may_tell(raw) for story in self.stories):
            return False
        line = _parsed(raw)
        if line is None:
            return self == Wanted()
        for story in self.stories:
            story.learn(line)
        return (
            _RANK.get(str(line.get("level")), 0) >= _RANK[self.level]
            and str(line.get("ts", "")) >= self.since
            and (not self.pool or line.get("pool") == self.pool)
            and all(story.tells(line) for story in self.stories)
        )


def _ids(line: Mapping[str, Any]) -> dict[str, str]:
    """Return the VM and the lease that a line names by its keys, or by the path that was asked for."""
    ids = {"vm": "", "lease": ""} | dict(_PATH.findall(str(line.get("path", ""))))
    return {key: str(line.get(key) or path) for key, path in ids.items()}


def _parsed(raw: str) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None
