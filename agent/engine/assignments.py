"""The assignment in force: from a watched file or from the API, according to the configuration, never from both.

The last valid assignment is in the journal. It stays in force while a newer file is invalid, also after a restart, and
the condition `AssignmentValid` has the reason."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import structlog

from agent.config import STORED, Assignment, ConfigError, load_assignment
from agent.config.file_watch import watch_file
from agent.domain.errors import RefusedError
from agent.domain.facts import AssignmentAccepted, AssignmentRefused
from agent.domain.model import Condition, ConditionStatus, StoredAssignment
from agent.engine.schema import JournalError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.domain.model import PoolSpec
    from agent.engine.state_store import StateStore

log = structlog.get_logger()


class AssignmentReadOnlyError(RefusedError):
    """The assignment was sent to the API, but the configuration names a file as its source."""

    code = "assignment-read-only"


class AssignmentConflictError(RefusedError):
    """The assignment changed since the caller read it."""

    code = "assignment-conflict"


@dataclass(frozen=True, slots=True)
class HeldAssignment:
    """The assignment in force, with its pools, its entity tag and its source (`file` or `api`)."""

    document: Assignment
    pools: tuple[PoolSpec, ...]
    etag: str
    source: str
    error: str = ""  # why a newer assignment was refused, if it was


class Assignments:
    """Holds the assignment in force and changes it from its one source."""

    def __init__(
        self, store: StateStore, *, source: Literal["file", "api"], file: Path, on_change: Callable[[], None]
    ) -> None:
        self._store = store
        self._source = source
        self._file = file
        self._on_change = on_change
        self._lock = asyncio.Lock()  # a change is compared, committed and put in force before the next one is compared
        self.held = _hold(Assignment(), source)

    async def load(self) -> None:
        """Load the last valid assignment, then the file if that is the source."""
        stored = self._store.state.assignment
        if stored is not None:
            self.held = _hold(Assignment.model_validate_json(stored.document, context=STORED), self._source)
        if self._source == "file":
            await self._reload_or_log()

    async def watch(self) -> None:
        """Follow the file until cancelled. Does nothing when the source is the API."""
        if self._source != "file":
            return
        await watch_file(self._file, self._reload_or_log)

    async def reload(self) -> None:
        """Read the file; keep the assignment in force if the file is invalid."""
        async with self._lock:
            try:
                document = await asyncio.to_thread(load_assignment, self._file)
            except ConfigError as error:
                is_reported = str(error) == self.held.error
                self.held = replace(self.held, error=str(error))
                self._on_change()
                if not is_reported:
                    await self._store.record(AssignmentRefused(str(error)))
            else:
                await self._accept(document)

    async def check_file(self) -> None:
        """Read the file again if that is the source: its change notification may be lost, or the journal unwritable
        then."""
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
        async with self._lock:
            if if_match is not None and if_match != self.held.etag:
                raise AssignmentConflictError(
                    f"the assignment in force is {self.held.etag}, not {if_match}", remedy="read it again, then write"
                )
            await self._accept(document)
            return self.held

    def condition(self, now_s: float) -> Condition:
        """Return whether the newest assignment is the one in force."""
        if self.held.error:
            message = f"{self.held.error}. The last valid assignment stays in force"
            return Condition("AssignmentValid", ConditionStatus.FALSE, "Refused", message, now_s, problem=True)
        return Condition("AssignmentValid", ConditionStatus.TRUE, "AsExpected", "", now_s)

    async def _reload_or_log(self) -> None:
        try:
            await self.reload()
        except JournalError as error:
            log.error("assignment-not-written", error=str(error))  # noqa: TRY400 - the message is complete

    async def _accept(self, document: Assignment) -> None:
        accepted = _hold(document, self._source)
        stored = StoredAssignment(self._source, accepted.etag, document.model_dump_json())
        if self._store.state.assignment != stored:
            await self._store.record(AssignmentAccepted(stored, tuple(document.pools)))
        is_changed = accepted != self.held
        self.held = accepted
        if is_changed:
            self._on_change()


def _hold(document: Assignment, source: str) -> HeldAssignment:
    return HeldAssignment(document, document.specs(), etag_of(document), source)


def etag_of(document: Assignment) -> str:
    """Return the entity tag of an assignment: the same for the same content, whatever the file's layout."""
    return hashlib.sha256(document.model_dump_json().encode()).hexdigest()[:16]
