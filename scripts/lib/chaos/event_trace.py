"""Traces of VMs and leases, built from the agent's events and checked for consistency. Pure.

A VM's states only go forward, it is granted to one lease at most, and every failure has a cause that chaos explains.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from scripts.lib.chaos.expected_state import ExpectedState
    from scripts.lib.chaos.journal_reader import Document


class Violation(StrEnum):
    """Kinds of violations."""

    LOST = "lost"  # a lease, or a VM without a final event
    LEAKED = "leaked"  # a process, file or row without an owner
    DOUBLE_LEASED = "double_leased"
    HEALTHY_RESTARTED = "healthy_restarted"
    UNEXPLAINED = "unexplained"  # events without a cause, or in an impossible order
    UNSETTLED = "unsettled"  # the host does not reach the desired state
    AGENT_ENDED = "agent_ended"  # unexpectedly


@dataclass(frozen=True, slots=True)
class Finding:
    """One violation and its details."""

    violation: Violation
    about: str

    def __str__(self) -> str:
        return f"{self.violation}: {self.about}"


_ORDER: Final = {
    "vm-creating": 0, "vm-starting": 1, "vm-ready": 2, "lease-granted": 3, "vm-failed": 4,
    "lease-released": 5, "lease-expired": 5, "lease-broken": 5, "vm-stopping": 6, "vm-gone": 7,
}  # fmt: skip
_ONCE: Final = frozenset({"vm-creating", "lease-granted", "vm-failed", "vm-gone"})
_CRASH_CAUSES: Final = frozenset({"interrupted", "lost", "start-failed"})
"""Causes when the agent died while it made the VM."""
_DISK_CAUSES: Final = frozenset({"clone-failed", "start-failed", "exited", "probe-failed", "startup-deadline"})
"""Causes when the disk was full or the hypervisor tool failed."""


@dataclass(slots=True)
class VmTrace:
    """Events of one VM."""

    pool: str = ""
    image: str = ""
    last: str = ""
    seen: Counter[str] = field(default_factory=Counter)
    ended_in_round: int | None = None

    @property
    def was_ready(self) -> bool:
        """Return whether the VM has ever been ready."""
        return self.seen["vm-ready"] > 0


class EventTrace:
    """Traces of all VMs and the ends of leases. Takes the events in order."""

    def __init__(self, expected: ExpectedState) -> None:
        self._expected = expected
        self.vms: dict[str, VmTrace] = {}
        self.lease_ends: dict[str, str] = {}  # lease: the event that ended it
        self._unhealthy: set[str] = set()
        self.last_event = 0

    def add_events(self, events: Iterable[Document]) -> list[Finding]:
        """Add new events; return the violations in them."""
        findings: list[Finding] = []
        for event in events:
            self.last_event = event["sequence"]
            if event.get("lease") and event["kind"].startswith("lease-") and event["kind"] in _ORDER:
                findings += self._add_lease_event(event)
            if event.get("vm") and event["kind"] in _ORDER:
                findings += self._add_vm_event(event)
            if event["kind"] == "vm-unhealthy-while-leased":
                self._unhealthy.add(event["vm"])
        return findings

    def was_unhealthy_while_leased(self, vm: str) -> bool:
        """Return whether the holder of a VM was notified that it is unhealthy."""
        return vm in self._unhealthy

    def _add_lease_event(self, event: Document) -> Iterator[Finding]:
        if event["kind"] == "lease-granted":
            return
        if event["lease"] in self.lease_ends:
            yield Finding(Violation.UNEXPLAINED, f"lease {event['lease']} ended twice")
        self.lease_ends[event["lease"]] = event["kind"]

    def _add_vm_event(self, event: Document) -> Iterator[Finding]:
        vm, kind = event["vm"], event["kind"]
        vm_trace = self.vms.setdefault(vm, VmTrace(pool=event.get("pool") or ""))
        vm_trace.image = event.get("image") or vm_trace.image
        if not vm_trace.seen and kind != "vm-creating":
            yield Finding(Violation.UNEXPLAINED, f"{vm}: {kind} before vm-creating")
        if vm_trace.last and _ORDER[kind] < _ORDER[vm_trace.last]:
            yield Finding(Violation.UNEXPLAINED, f"{vm}: {kind} after {vm_trace.last}")
        vm_trace.seen[kind] += 1
        vm_trace.last = kind
        if kind in _ONCE and vm_trace.seen[kind] > 1:
            fault = Violation.DOUBLE_LEASED if kind == "lease-granted" else Violation.UNEXPLAINED
            yield Finding(fault, f"{vm}: {kind} {vm_trace.seen[kind]} times")
        if kind == "vm-ready" and event.get("duration_s"):
            self._expected.boots_s.append(event["duration_s"])
        if kind == "vm-failed":
            yield from self._check_failure(vm, vm_trace, event)

    def _check_failure(self, vm: str, vm_trace: VmTrace, event: Document) -> Iterator[Finding]:
        cause, detail = event.get("cause") or "", event.get("detail") or ""
        if not cause or not detail:
            yield Finding(Violation.UNEXPLAINED, f"{vm} failed without cause or detail")
        if not self._is_failure_expected(vm, vm_trace, cause):
            fault = Violation.HEALTHY_RESTARTED if vm_trace.was_ready else Violation.UNEXPLAINED
            yield Finding(fault, f"{vm}, which was not harmed, failed: {cause}: {detail}")

    def _is_failure_expected(self, vm: str, vm_trace: VmTrace, cause: str) -> bool:
        expected = self._expected
        if vm in expected.harmed or expected.is_bad_version(vm_trace.image):
            return True
        if vm_trace.was_ready:
            return False
        if expected.round.crashed and cause in _CRASH_CAUSES:
            return True
        if (expected.round.disk_was_full or expected.round.tool_failed) and cause in _DISK_CAUSES:
            return True
        return cause == "startup-deadline" and vm_trace.pool in expected.short_deadline_pools
