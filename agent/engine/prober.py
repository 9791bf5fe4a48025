"""The prober: one task per running VM, with startup probes until the VM is ready and liveness probes afterwards.

What a result means is decided by `agent.domain.health`, what follows by `agent.domain.record`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from agent.domain.health import Health, Outcome, ProbeResult, Unhealthy, add_result
from agent.domain.model import Cause
from agent.domain.states import AWAITS_PROBES, RUNNING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from agent.domain.model import PoolSpec, ProbeSpec, Vm
    from agent.engine.probe_runner import ProbeRunner

log = structlog.get_logger()

_RECENT: Final = 32
"""Results stored of each VM for its evidence."""
_FIRST_STARTUP_TIMEOUT_S: Final = 0.5
"""A connection to a guest without a network may hang for its whole timeout, so the first attempts are short."""


class ProbeReports(Protocol):
    """The receiver of what probes find."""

    async def startup_passed(self, vm: str) -> None:
        """All startup probes of a VM passed."""

    async def unhealthy(self, vm: str, unhealthy: Unhealthy) -> None:
        """A VM is unhealthy."""


@dataclass(frozen=True, slots=True)
class _VmResults:
    latest: dict[str, ProbeResult] = field(default_factory=dict)
    recent: deque[ProbeResult] = field(default_factory=lambda: deque(maxlen=_RECENT))


class ProbeResults:
    """The latest result of each probe of a VM, and its last results of all probes."""

    def __init__(self) -> None:
        self._vms: dict[str, _VmResults] = {}

    def add(self, vm: str, result: ProbeResult) -> None:
        """Store a result."""
        results = self._vms.setdefault(vm, _VmResults())
        results.latest[result.probe] = result
        results.recent.append(result)

    def latest(self, vm: str) -> tuple[ProbeResult, ...]:
        """Return the latest result of each probe of a VM."""
        return tuple(self._vms[vm].latest.values()) if vm in self._vms else ()

    def recent(self, vm: str) -> tuple[ProbeResult, ...]:
        """Return the last results of a VM, oldest first."""
        return tuple(self._vms[vm].recent) if vm in self._vms else ()

    def keep_only(self, vms: Collection[str]) -> None:
        """Delete the results of all other VMs."""
        for name in self._vms.keys() - vms:
            del self._vms[name]


@dataclass(frozen=True, slots=True)
class _ProbeTask:
    task: asyncio.Task[None]
    probes: tuple[ProbeSpec, ...]


class Prober:
    """Keeps exactly one probe task for each running VM."""

    def __init__(
        self,
        probe_runner: ProbeRunner,
        reports: ProbeReports,
        results: ProbeResults,
        *,
        on_result: Callable[[str, ProbeResult], None],
        clock: Callable[[], float],
    ) -> None:
        self._probe_runner = probe_runner
        self._reports = reports
        self._results = results
        self._on_result = on_result
        self._clock = clock
        self._tasks: dict[str, _ProbeTask] = {}
        self._busy: frozenset[str] = frozenset()

    def sync(self, vms: Iterable[Vm], pool_of: Callable[[Vm], PoolSpec | None], busy: frozenset[str]) -> None:
        """Start missing probe tasks, and end those of VMs that do not run any more.

        The results of a VM stay as long as the VM is recorded, so that its failure can be explained.
        """
        self._busy = busy
        known = {vm.name: vm for vm in vms}
        running = {name: vm for name, vm in known.items() if vm.state in RUNNING}
        for name in self._tasks.keys() - running.keys():
            self._end(name)
        self._results.keep_only(known.keys())
        for name, vm in running.items():
            spec = pool_of(vm)
            if spec is None or name in busy:
                continue
            current = self._tasks.get(name)
            if current is not None and (current.task.done() or current.probes != spec.probes):
                self._end(name)  # its report failed, or the pool has other probes now
            if name not in self._tasks:
                task = asyncio.create_task(self._probe(vm, spec), name=f"probes of {name}")
                self._tasks[name] = _ProbeTask(task, spec.probes)

    async def close(self) -> None:
        """End every probe task."""
        tasks = [self._end(name) for name in list(self._tasks)]
        await asyncio.gather(*tasks, return_exceptions=True)

    def _end(self, name: str) -> asyncio.Task[None]:
        task = self._tasks.pop(name).task
        if task.done() and not task.cancelled() and (error := task.exception()):
            log.error("probe-task-failed", vm=name, error=repr(error))
        task.cancel()
        return task

    async def _probe(self, vm: Vm, pool: PoolSpec) -> None:
        with structlog.contextvars.bound_contextvars(vm=vm.name, pool=vm.pool):
            if vm.state in AWAITS_PROBES and not await self._probe_startup(vm, pool):
                return
            async with asyncio.TaskGroup() as group:
                for probe in pool.probes:
                    group.create_task(self._probe_liveness(vm, probe))

    async def _probe_startup(self, vm: Vm, pool: PoolSpec) -> bool:
        """Run all probes in order until all pass in one round; return whether they did before the deadline."""
        # Counted on the event loop's clock: the host's clock may be set during the boot.
        now_s = asyncio.get_running_loop().time
        deadline_s = now_s() + vm.since_s + pool.startup_deadline_s - self._clock()
        timeout_s = _FIRST_STARTUP_TIMEOUT_S
        while True:
            failed = await self._run_round(vm, pool.probes, timeout_s)
            if failed is None:
                await self._reports.startup_passed(vm.name)
                return True
            if now_s() >= deadline_s:
                reason = f"not healthy {pool.startup_deadline_s:g} s after its start; {failed.probe}: {failed.detail}"
                await self._reports.unhealthy(vm.name, Unhealthy(Cause.STARTUP_DEADLINE, reason))
                return False
            timeout_s *= 1.5
            # The wait for an answer is part of the period: a guest that comes up during it is found immediately.
            pause_s = pool.startup_period_s - failed.duration_s
            await asyncio.sleep(max(0.0, min(pause_s, deadline_s - now_s())))

    async def _run_round(self, vm: Vm, probes: tuple[ProbeSpec, ...], timeout_s: float) -> ProbeResult | None:
        """Run each probe once, in order; return the first result that is not a pass."""
        for probe in probes:
            result = await self._run(vm, probe, min(probe.timeout_s, timeout_s))
            if result.outcome is not Outcome.PASS:
                return result
        return None

    async def _probe_liveness(self, vm: Vm, probe: ProbeSpec) -> None:
        """Run one liveness probe periodically, and report each time it finds the VM unhealthy."""
        health, pause_s = Health(), probe.period_s
        while True:
            await asyncio.sleep(pause_s)
            pause_s = probe.period_s
            if vm.name in self._busy:
                continue  # an effect may pause it, for example while its snapshot is saved
            result = await self._run(vm, probe, probe.timeout_s)
            # The wait is part of the period: a hung guest is found after `failures` periods and one timeout.
            pause_s = max(0.0, probe.period_s - result.duration_s)
            if result.outcome is not Outcome.PASS:
                log.warning("probe-not-passed", probe=probe.name, outcome=result.outcome, detail=result.detail)
            health, unhealthy = add_result(health, probe, result)
            if unhealthy is not None:
                await self._reports.unhealthy(vm.name, unhealthy)

    async def _run(self, vm: Vm, probe: ProbeSpec, timeout_s: float) -> ProbeResult:
        result = await self._probe_runner.run(vm.name, probe, timeout_s=timeout_s)
        self._results.add(vm.name, result)
        self._on_result(vm.pool, result)
        return result
