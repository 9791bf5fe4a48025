"""The condition board: the latest condition of each type with the moment of its last change. Logs each change once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from agent.domain.model import Condition, ConditionStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

log = structlog.get_logger()


class ConditionBoard:
    """The latest condition of each type."""

    def __init__(self) -> None:
        self._conditions: dict[str, Condition] = {}

    def post(self, conditions: Iterable[Condition]) -> None:
        """Replace conditions; `since_s` changes only with status or reason."""
        for new in conditions:
            old = self._conditions.get(new.type)
            if old is not None and (old.status, old.reason) == (new.status, new.reason):
                self._conditions[new.type] = replace(new, since_s=old.since_s)
                continue
            self._conditions[new.type] = new
            if old is not None or new.problem:
                log.info(
                    "condition-changed", condition=new.type, status=new.status, reason=new.reason, detail=new.message
                )

    def post_problem(self, kind: str, now_s: float, *, reason: str = "", message: str = "") -> None:
        """Post a condition that is true unless there is a `reason` why not."""
        status = ConditionStatus.FALSE if reason else ConditionStatus.TRUE
        self.post([Condition(kind, status, reason or "AsExpected", message, now_s, problem=bool(reason))])

    def all(self) -> tuple[Condition, ...]:
        """Return every condition, by type."""
        return tuple(self._conditions[kind] for kind in sorted(self._conditions))

    def as_mapping(self) -> Mapping[str, Condition]:
        """Return the conditions by type."""
        return dict(self._conditions)
