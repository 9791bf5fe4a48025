"""What the events tell of every VM and lease, and whether it can be true. Pure.

A VM's life only goes forward, is granted to one lease at most, and every failure names a cause that chaos knows of.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from scripts.lib.chaos.book import Book
    from scripts.lib.chaos.record import Document


class Fault(StrEnum):
    """What the agent can be found guilty of."""

    LOST = "lost"  # a lease, or a VM without a word
    LEAKED = "leaked"  # a process, file or row without an owner
    DOUBLE_LEASED = "double_leased"
    HEALTHY_RESTARTED = "healthy_restarted"
    UNEXPLAINED = "unexplained"  # events that tell no cause, or an impossible story
    UNSETTLED = "unsettled"  # desired and actual state stay apart
    AGENT_ENDED = "agent_ended"  # by itself


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault, and what it is about."""

    fault: Fault
    about: str

    def __str__(self) -> str:
        return f"{self.fault}: {self.about}"


_ORDER: Final = {
    "vm-creating": 0, "vm-starting": 1, "vm-ready": 2, "lease-granted": 3, "vm-failed": 4,
    "lease-released": 5, "lease-expired": 5, "lease-broken": 5, "vm-stopping": 6, "vm-gone": 7,
}  # fmt: skip
_ONCE: Final = frozenset({"vm-creating", "lease-granted", "vm-failed", "vm-gone"})
_CRASH_CAUSES: Final = frozenset({"interrupted", "lost", "start-failed"})
"""How a VM ends whose making was interrupted by the death of the agent."""
_DISK_CAUSES: Final = frozenset({"clone-failed", "start-failed", "exited", "probe-failed", "startup-deadline"})
"""How a VM ends that could not write, or whose making failed. That this could not be written down is no reason."""


@dataclass(slots=True)
class Life:
    """What was told of one VM."""

    pool: str = ""
    image: str = ""
    last: str = ""
    seen: Counter[str] = field(default_factory=Counter)
    ended_in_round: int | None = None

    @property
    def was_ready(self) -> bool:
        """Whether it was ever proven."""
        return self.seen["vm-ready"] > 0


class Story:
    """All lives, told by events in order."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self.lives: dict[str, Life] = {}
        self.lease_ends: dict[str, str] = {}  # lease: the event that ended it
        self._unhealthy: set[str] = set()
        self.last_event = 0

    def tell(self, events: Iterable[Document]) -> list[Finding]:
        """Take in what happened since; return what cannot be true or should not be."""
        findings: list[Finding] = []
        for event in events:
            self.last_event = event["sequence"]
            if event.get("lease") and event["kind"].startswith("lease-") and event["kind"] in _ORDER:
                findings += self._lease(event)
            if event.get("vm") and event["kind"] in _ORDER:
                findings += self._step(event)
            if event["kind"] == "vm-unhealthy-while-leased":
                self._unhealthy.add(event["vm"])
        return findings

    def unhealthy_while_leased(self, vm: str) -> bool:
        """Whether the holder of a VM was told that it is unhealthy."""
        return vm in self._unhealthy

    def _lease(self, event: Document) -> Iterator[Finding]:
        if event["kind"] == "lease-granted":
            return
        if event["lease"] in self.lease_ends:
            yield Finding(Fault.UNEXPLAINED, f"lease {event['lease']} ended twice")
        self.lease_ends[event["lease"]] = event["kind"]

    def _step(self, event: Document) -> Iterator[Finding]:
        vm, kind = event["vm"], event["kind"]
        life = self.lives.setdefault(vm, Life(pool=event.get("pool") or ""))
        life.image = event.get("image") or life.image
        if not life.seen and kind != "vm-creating":
            yield Finding(Fault.UNEXPLAINED, f"{vm}: {kind} without ever being created")
        if life.last and _ORDER[kind] < _ORDER[life.last]:
            yield Finding(Fault.UNEXPLAINED, f"{vm}: {kind} after {life.last}")
        life.seen[kind] += 1
        life.last = kind
        if kind in _ONCE and life.seen[kind] > 1:
            fault = Fault.DOUBLE_LEASED if kind == "lease-granted" else Fault.UNEXPLAINED
            yield Finding(fault, f"{vm}: {kind} {life.seen[kind]} times")
        if kind == "vm-ready" and event.get("duration_s"):
            self._book.boots_s.append(event["duration_s"])
        if kind == "vm-failed":
            yield from self._failure(vm, life, event)

    def _failure(self, vm: str, life: Life, event: Document) -> Iterator[Finding]:
        cause, detail = event.get("cause") or "", event.get("detail") or ""
        if not cause or not detail:
            yield Finding(Fault.UNEXPLAINED, f"{vm} failed without cause or detail")
        if not self._expected(vm, life, cause):
            fault = Fault.HEALTHY_RESTARTED if life.was_ready else Fault.UNEXPLAINED
            yield Finding(fault, f"{vm}, which nobody harmed, failed: {cause}: {detail}")

    def _expected(self, vm: str, life: Life, cause: str) -> bool:
        book = self._book
        if vm in book.harmed or book.is_doomed(life.image):
            return True
        if life.was_ready:
            return False
        if book.deeds.crashed and cause in _CRASH_CAUSES:
            return True
        if (book.deeds.disk_was_full or book.deeds.tool_failed) and cause in _DISK_CAUSES:
            return True
        return cause == "startup-deadline" and life.pool in book.impatient
