"""Turns events, probe answers, refusals and commands into metrics: nothing else in the engine thinks of them."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from pathlib import PurePath
from typing import TYPE_CHECKING

from agent.domain.events import Event, EventKind
from agent.domain.health import Outcome as Answer
from agent.engine.leases import NoVmFreeError
from agent.processes.command import CommandOutcome
from agent.telemetry.metrics import Outcome

if TYPE_CHECKING:
    from agent.domain.health import ProbeResult
    from agent.processes.command import CommandReport
    from agent.telemetry.metrics import Metrics


class Metering:
    """Listens to the ledger and keeps the metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._failed_at_s: defaultdict[str, deque[float]] = defaultdict(deque)

    def count(self, events: tuple[Event, ...]) -> None:
        """Count what was just committed."""
        for event in events:
            self._count(event)

    def answer(self, pool: str, result: ProbeResult) -> None:
        """Count a probe answer that was no pass."""
        if result.outcome is not Answer.PASS:
            self._metrics.probe_failures.labels(pool=pool, cause=result.outcome).inc()

    def refusal(self, pool: str, error: BaseException) -> None:
        """Count a lease request that got no lease: it waited in vain, its client went away, or it was refused."""
        outcome = Outcome.REFUSED
        if isinstance(error, NoVmFreeError):
            outcome = Outcome.TIMEOUT
        elif isinstance(error, asyncio.CancelledError):
            outcome = Outcome.CANCELLED
        self._metrics.leases.labels(pool=pool, outcome=outcome).inc()

    def command(self, report: CommandReport) -> None:
        """Count an external command that ended."""
        tool = PurePath(report.program).name
        self._metrics.tool_command.labels(tool=tool, outcome=report.outcome).observe(report.duration_s)
        if report.outcome is CommandOutcome.TIMEOUT:
            self._metrics.tool_timeouts.labels(tool=tool).inc()

    def _count(self, event: Event) -> None:
        metrics, pool, took_s = self._metrics, event.pool or "", event.duration_s or 0.0
        durations = {
            EventKind.VM_STARTING: metrics.clone,
            EventKind.VM_READY: metrics.boot,
            EventKind.VM_GONE: metrics.teardown,
            EventKind.LEASE_GRANTED: metrics.lease_wait,
        }
        if event.kind in durations:
            durations[event.kind].labels(pool=pool, outcome=Outcome.OK).observe(took_s)
        match event.kind:
            case EventKind.VM_READY:
                self._count_replacement(pool, event.at_s)
            case EventKind.VM_FAILED:
                metrics.vm_failures.labels(pool=pool, cause=event.cause or "").inc()
                self._failed_at_s[pool].append(event.at_s)
            case EventKind.VM_ADOPTED:
                metrics.adopted.inc()
            case EventKind.VM_TEARDOWN_FAILED | EventKind.STRAY_REAP_FAILED:
                metrics.leaked.inc()
            case EventKind.LEASE_GRANTED:
                metrics.leases.labels(pool=pool, outcome=Outcome.OK).inc()
            case EventKind.IMAGE_PULLED | EventKind.IMAGE_PULL_FAILED:
                outcome = Outcome.OK if event.kind is EventKind.IMAGE_PULLED else Outcome.FAILED
                metrics.pull.labels(outcome=outcome).observe(took_s)

    def _count_replacement(self, pool: str, ready_at_s: float) -> None:
        """Take the next VM to turn ready as the replacement of the pool's longest missed one."""
        if self._failed_at_s[pool]:
            replaced_s = ready_at_s - self._failed_at_s[pool].popleft()
            self._metrics.replacement.labels(pool=pool, outcome=Outcome.OK).observe(max(0.0, replaced_s))
