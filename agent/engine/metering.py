"""Metering: turns events, probe results, refused requests and external commands into metrics."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from agent.domain.events import Event, EventKind
from agent.domain.health import Outcome as ProbeOutcome
from agent.engine.leases import NoVmFreeError
from agent.processes.command import CommandOutcome
from agent.telemetry.metrics import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.domain.health import ProbeResult
    from agent.processes.command import CommandReport
    from agent.telemetry.metrics import Metrics


_BEGINNINGS: Final = frozenset(
    {EventKind.VM_CREATING, EventKind.VM_STARTING, EventKind.VM_SUSPENDING, EventKind.VM_RESUMING}
)
_ENDS: Final = frozenset({EventKind.VM_READY, EventKind.VM_FAILED, EventKind.VM_RESUME_FAILED})
_MEASURED: Final[Mapping[tuple[EventKind | None, Outcome], str]] = {
    (EventKind.VM_CREATING, Outcome.FAILED): "clone",
    (EventKind.VM_STARTING, Outcome.OK): "boot",
    (EventKind.VM_STARTING, Outcome.FAILED): "boot",
    (EventKind.VM_SUSPENDING, Outcome.FAILED): "suspend",
    (EventKind.VM_RESUMING, Outcome.OK): "resume",
    (EventKind.VM_RESUMING, Outcome.FAILED): "resume",
}
"""The histogram of the operation a VM began, by how it ended. Operations that end in an event of their own are
absent."""


class Metering:
    """Updates the metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._failed_at_s: defaultdict[str, deque[float]] = defaultdict(deque)
        self._created_at_s: dict[str, float] = {}
        self._busy_since: dict[str, tuple[EventKind, float]] = {}
        """The last operation that each VM began, and when."""

    def count(self, events: tuple[Event, ...]) -> None:
        """Count the events of one commit."""
        for event in events:
            self._count(event)

    def count_probe(self, pool: str, result: ProbeResult) -> None:
        """Count a probe that did not pass."""
        if result.outcome is not ProbeOutcome.PASS:
            self._metrics.probe_failures.labels(pool=pool, cause=result.outcome).inc()

    def count_refusal(self, pool: str, error: BaseException) -> None:
        """Count a lease request without a lease: it timed out, its client disconnected, or it was refused."""
        outcome = Outcome.REFUSED
        if isinstance(error, NoVmFreeError):
            outcome = Outcome.TIMEOUT
        elif isinstance(error, asyncio.CancelledError):
            outcome = Outcome.CANCELLED
        self._metrics.leases.labels(pool=pool, outcome=outcome).inc()

    def count_command(self, report: CommandReport) -> None:
        """Count an external command that ended."""
        tool = PurePath(report.program).name
        self._metrics.tool_command.labels(tool=tool, outcome=report.outcome).observe(report.duration_s)
        if report.outcome is CommandOutcome.TIMEOUT:
            self._metrics.tool_timeouts.labels(tool=tool).inc()

    def _count(self, event: Event) -> None:
        metrics, pool, took_s = self._metrics, event.pool or "", event.duration_s or 0.0
        durations = {
            EventKind.VM_STARTING: metrics.clone,
            EventKind.VM_STANDBY: metrics.suspend,
            EventKind.VM_GONE: metrics.teardown,
            EventKind.LEASE_GRANTED: metrics.lease_wait,
        }
        if event.kind in durations:
            durations[event.kind].labels(pool=pool, outcome=Outcome.OK).observe(took_s)
        self._follow(event)
        match event.kind:
            case EventKind.VM_READY:
                self._count_replacement(pool, event.at_s)
            case EventKind.VM_FAILED:
                metrics.vm_failures.labels(pool=pool, cause=event.cause or "").inc()
                self._failed_at_s[pool].append(event.at_s)
            case EventKind.VM_ADOPTED:
                metrics.adopted.inc()
            case EventKind.STRAY_REMOVED:
                metrics.orphaned.inc()
            case EventKind.VM_TEARDOWN_FAILED | EventKind.STRAY_REMOVAL_FAILED:
                metrics.leaked.inc()
            case EventKind.LEASE_GRANTED:
                metrics.leases.labels(pool=pool, outcome=Outcome.OK).inc()
            case EventKind.IMAGE_PULLED | EventKind.IMAGE_PULL_FAILED:
                outcome = Outcome.OK if event.kind is EventKind.IMAGE_PULLED else Outcome.FAILED
                metrics.pull.labels(outcome=outcome).observe(took_s)

    def _follow(self, event: Event) -> None:
        """Measure a VM's operation when it ends. One that began in an earlier run of the agent is not measured."""
        vm, pool, kind = event.vm or "", event.pool or "", event.kind
        if kind is EventKind.VM_CREATING:
            self._created_at_s[vm] = event.at_s
        if kind in _BEGINNINGS:
            self._busy_since[vm] = (kind, event.at_s)
        elif kind in _ENDS:
            outcome = Outcome.OK if kind is EventKind.VM_READY else Outcome.FAILED
            begun, at_s = self._busy_since.pop(vm, (None, event.at_s))
            if name := _MEASURED.get((begun, outcome)):
                getattr(self._metrics, name).labels(pool=pool, outcome=outcome).observe(max(0.0, event.at_s - at_s))
            if kind is not EventKind.VM_RESUME_FAILED and vm in self._created_at_s:
                took_s = max(0.0, event.at_s - self._created_at_s.pop(vm))
                self._metrics.ready.labels(pool=pool, outcome=outcome).observe(took_s)
        elif kind is EventKind.VM_TEARDOWN_FAILED:
            self._metrics.teardown.labels(pool=pool, outcome=Outcome.FAILED).observe(event.duration_s or 0.0)
        elif kind is EventKind.VM_GONE:
            self._created_at_s.pop(vm, None)
            self._busy_since.pop(vm, None)

    def _count_replacement(self, pool: str, ready_at_s: float) -> None:
        """Count the next VM that becomes ready as the replacement of the one that failed first."""
        if self._failed_at_s[pool]:
            replaced_s = ready_at_s - self._failed_at_s[pool].popleft()
            self._metrics.replacement.labels(pool=pool, outcome=Outcome.OK).observe(max(0.0, replaced_s))
