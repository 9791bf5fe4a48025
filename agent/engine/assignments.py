"""The assignment in force: from a watched file or from the API, whichever the configuration names, never both.

The last good assignment is in the journal. A bad file keeps it in force, now and after a restart, and a condition
tells why the newer one was refused.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import structlog

from agent.config import Assignment, ConfigError, load_assignment
from agent.config.file_watch import watch_file
from agent.domain.errors import ErrorOrigin, HearthError
from agent.domain.events import EventKind
from agent.domain.model import Condition, ConditionStatus
from agent.engine.database import JournalError, StoredAssignment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.engine.state_store import StateStore

log = structlog.get_logger()


class AssignmentReadOnlyError(HearthError):
    """The assignment was written through the door that the configuration does not name."""

    code = "assignment-read-only"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class AssignmentConflictError(HearthError):
    """Somebody else changed the assignment since the caller read it."""

    code = "assignment-conflict"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


@dataclass(frozen=True, slots=True)
class HeldAssignment:
    """The assignment in force, with its entity tag and where it came from (`file` or `api`)."""

    document: Assignment
    etag: str
    source: str
    error: str = ""  # why a newer one was refused, if it was


class Assignments:
    """Holds the assignment in force and lets it change through one door."""

    def __init__(
        self, store: StateStore, *, source: Literal["file", "api"], file: Path, on_change: Callable[[], None]
    ) -> None:
        self._store = store
        self._source = source
        self._file = file
        self._on_change = on_change
        self.held = HeldAssignment(Assignment(), etag_of(Assignment()), source)

    async def load(self) -> None:
        """Take up the last good assignment, then the file if that is the source."""
        stored = self._store.assignment
        if stored is not None:
            self.held = HeldAssignment(Assignment.model_validate_json(stored.document), stored.etag, self._source)
        if self._source == "file":
            await self._reload_or_log()

    async def watch(self) -> None:
        """Follow the file until cancelled. Does nothing when the source is the API."""
        if self._source != "file":
            return
        await watch_file(self._file, self._reload_or_log)

    async def reload(self) -> None:
        """Read the file; keep the assignment in force when the file cannot be used."""
        try:
            document = await asyncio.to_thread(load_assignment, self._file)
        except ConfigError as error:
            told = str(error) == self.held.error
            self.held = HeldAssignment(self.held.document, self.held.etag, self.held.source, str(error))
            self._on_change()
            if not told:
                async with self._store.transaction() as transaction:
                    transaction.event(EventKind.ASSIGNMENT_REFUSED, detail=str(error))
        else:
            await self._accept(document)

    async def check_file(self) -> None:
        """Read the file again if that is the source: a change whose notice was lost, or could not be written down."""
        if self._source == "file":
            await self._reload_or_log()

    async def put(self, document: Assignment, *, if_match: str | None) -> HeldAssignment:
        """Replace the assignment from the API; durable when this returns.

        Raises `AssignmentReadOnlyError` when the source is a file, `AssignmentConflictError` when `if_match` is given
        and is not the tag of the assignment in force.
        """
        if self._source == "file":
            raise AssignmentReadOnlyError(
                f"this host takes its assignment from {self._file}",
                remedy='edit that file, or set assignment.source = "api" in the configuration',
            )
        if if_match is not None and if_match != self.held.etag:
            raise AssignmentConflictError(
                f"the assignment in force is {self.held.etag}, not {if_match}", remedy="read it again, then write"
            )
        await self._accept(document)
        return self.held

    def condition(self, now_s: float) -> Condition:
        """Tell whether the newest assignment offered is the one in force."""
        if self.held.error:
            message = f"{self.held.error}. The last good assignment stays in force"
            return Condition("AssignmentValid", ConditionStatus.FALSE, "Refused", message, now_s, problem=True)
        return Condition("AssignmentValid", ConditionStatus.TRUE, "AsExpected", "", now_s)

    async def _reload_or_log(self) -> None:
        try:
            await self.reload()
        except JournalError as error:
            log.error("assignment-not-written", error=str(error))  # noqa: TRY400 - the message says it all

    async def _accept(self, document: Assignment) -> None:
        etag = etag_of(document)
        stored = StoredAssignment(self._source, etag, document.model_dump_json())
        if self._store.assignment != stored:
            async with self._store.transaction() as transaction:
                transaction.put(stored)
                transaction.event(EventKind.ASSIGNMENT_CHANGED, detail=", ".join(sorted(document.pools)) or "no pools")
        changed = self.held.etag != etag or bool(self.held.error)
        self.held = HeldAssignment(document, etag, self._source)
        if changed:
            self._on_change()


def etag_of(document: Assignment) -> str:
    """Return the entity tag of an assignment: the same for the same content, whatever the file's layout."""
    return hashlib.sha256(document.model_dump_json().encode()).hexdigest()[:16]
