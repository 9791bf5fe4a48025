"""One watch per running VM: startup probes until it is proven, then liveness probes for the rest of its life.

The watch only asks and tells: what an answer means is `agent.domain.health`'s, what follows is the engine's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from agent.domain.health import Health, Outcome, ProbeResult, Unhealthy, observe
from agent.domain.model import Cause
from agent.domain.states import RUNNING, UNPROVEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.domain.model import PoolSpec, ProbeSpec, Vm
    from agent.engine.probe_runner import ProbeRunner

log = structlog.get_logger()

_RECENT: Final = 32
"""Answers kept of each VM for its evidence."""
_FIRST_STARTUP_TIMEOUT_S: Final = 0.5
"""A connection to a guest without a network yet may hang for its whole timeout, so the first tries are short."""


class VmUpdates(Protocol):
    """Where a watch reports to."""

    async def proven(self, vm: str) -> None:
        """All startup probes of a VM passed."""

    async def unhealthy(self, vm: str, unhealthy: Unhealthy) -> None:
        """A VM must be replaced, or its lease holder told."""


@dataclass(frozen=True, slots=True)
class _Watch:
    """A running watch and the questions it asks."""

    task: asyncio.Task[None]
    probes: tuple[ProbeSpec, ...]


@dataclass(frozen=True, slots=True)
class _Answers:
    """What the probes of one VM answered: the latest of each, and the last of all."""

    latest: dict[str, ProbeResult] = field(default_factory=dict)
    recent: deque[ProbeResult] = field(default_factory=lambda: deque(maxlen=_RECENT))


class Prober:
    """Keeps exactly one watch for each VM that runs."""

    def __init__(
        self,
        probe_runner: ProbeRunner,
        updates: VmUpdates,
        *,
        on_answer: Callable[[str, ProbeResult], None],
        clock: Callable[[], float],
    ) -> None:
        self._probe_runner = probe_runner
        self._on_answer = on_answer
        self._updates = updates
        self._clock = clock
        self._watches: dict[str, _Watch] = {}
        self._busy: frozenset[str] = frozenset()
        self._answers: dict[str, _Answers] = {}

    def sync(self, vms: Iterable[Vm], pool: Callable[[str], PoolSpec | None], busy: frozenset[str]) -> None:
        """Start the watches that are missing and end those of VMs that do not run any more.

        The answers of a VM are kept as long as it is known, so that its failure can be explained.
        """
        self._busy = busy
        known = {vm.name: vm for vm in vms}
        running = {name: vm for name, vm in known.items() if vm.state in RUNNING}
        for name in self._watches.keys() - running.keys():
            self._end(name)
        for name in self._answers.keys() - known.keys():
            del self._answers[name]
        for name, vm in running.items():
            spec = pool(vm.pool)
            if spec is None or name in busy:
                continue
            watch = self._watches.get(name)
            if watch is not None and (watch.task.done() or watch.probes != spec.probes):
                self._end(name)  # it could not report its verdict, or the pool asks other questions now
            if name not in self._watches:
                task = asyncio.create_task(self._watch(vm, spec), name=f"watch {name}")
                self._watches[name] = _Watch(task, spec.probes)

    def latest(self, vm: str) -> tuple[ProbeResult, ...]:
        """Return the latest answer of each probe of a VM."""
        return tuple(self._answers[vm].latest.values()) if vm in self._answers else ()

    def recent(self, vm: str) -> tuple[ProbeResult, ...]:
        """Return the last answers of a VM's probes, oldest first."""
        return tuple(self._answers[vm].recent) if vm in self._answers else ()

    async def close(self) -> None:
        """End every watch."""
        tasks = [self._end(name) for name in list(self._watches)]
        await asyncio.gather(*tasks, return_exceptions=True)

    def _end(self, name: str) -> asyncio.Task[None]:
        task = self._watches.pop(name).task
        if task.done() and not task.cancelled() and (error := task.exception()):
            log.error("watch-failed", vm=name, error=repr(error))
        task.cancel()
        return task

    async def _watch(self, vm: Vm, pool: PoolSpec) -> None:
        with structlog.contextvars.bound_contextvars(vm=vm.name, pool=vm.pool):
            if vm.state in UNPROVEN and not await self._prove(vm, pool):
                return
            async with asyncio.TaskGroup() as group:
                for probe in pool.probes:
                    group.create_task(self._keep_asking(vm, probe))

    async def _prove(self, vm: Vm, pool: PoolSpec) -> bool:
        """Ask all probes, in order, until all pass in one round; return whether they did before the deadline."""
        deadline_s = vm.since_s + pool.startup_deadline_s
        patience_s = _FIRST_STARTUP_TIMEOUT_S
        while True:
            failed = await self._round(vm, pool.probes, patience_s)
            if failed is None:
                await self._updates.proven(vm.name)
                return True
            if self._clock() >= deadline_s:
                reason = f"not healthy {pool.startup_deadline_s:g} s after its start; {failed.probe}: {failed.detail}"
                await self._updates.unhealthy(vm.name, Unhealthy(Cause.STARTUP_DEADLINE, reason))
                return False
            patience_s *= 1.5
            # Waiting for an answer is part of the period: a guest that comes up meanwhile is found at once.
            pause_s = pool.startup_period_s - failed.duration_s
            await asyncio.sleep(max(0.0, min(pause_s, deadline_s - self._clock())))

    async def _round(self, vm: Vm, probes: tuple[ProbeSpec, ...], patience_s: float) -> ProbeResult | None:
        """Ask each probe once, in order; return the first answer that is not a pass."""
        for probe in probes:
            result = await self._ask(vm, probe, min(probe.timeout_s, patience_s))
            if result.outcome is not Outcome.PASS:
                return result
        return None

    async def _keep_asking(self, vm: Vm, probe: ProbeSpec) -> None:
        """Ask one liveness probe at its period for ever, and report each verdict."""
        health, pause_s = Health(), probe.period_s
        while True:
            await asyncio.sleep(pause_s)
            pause_s = probe.period_s
            if vm.name in self._busy:
                continue  # it may stand still on purpose, while its memory is saved
            result = await self._ask(vm, probe, probe.timeout_s)
            # Waiting for an answer is part of the period: a hung guest is found after `failures` of them and a timeout.
            pause_s = max(0.0, probe.period_s - result.duration_s)
            if result.outcome is not Outcome.PASS:
                log.warning("probe-not-passed", probe=probe.name, outcome=result.outcome, detail=result.detail)
            health, unhealthy = observe(health, probe, result)
            if unhealthy is not None:
                await self._updates.unhealthy(vm.name, unhealthy)

    async def _ask(self, vm: Vm, probe: ProbeSpec, timeout_s: float) -> ProbeResult:
        result = await self._probe_runner.ask(vm.name, probe, timeout_s=timeout_s)
        answers = self._answers.setdefault(vm.name, _Answers())
        answers.latest[probe.name] = result
        answers.recent.append(result)
        self._on_answer(vm.pool, result)
        return result
