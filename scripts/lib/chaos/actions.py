"""Executor of a round's steps. It records each action in the expected state before it acts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from agent.domain.names import parse
from scripts.lib.chaos.expected_state import LONG_DEADLINE_S, AssignedPool
from scripts.lib.chaos.journal_reader import JournalReader
from scripts.lib.chaos.steps import Kind
from scripts.lib.chaos.versions import Flavour

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from scripts.lib.chaos.agent_control import AgentControl
    from scripts.lib.chaos.clients import Clients
    from scripts.lib.chaos.expected_state import ExpectedState
    from scripts.lib.chaos.steps import Step
    from scripts.lib.chaos.versions import Version, VersionSource
    from scripts.lib.chaos.volume import Volume
    from scripts.lib.host import Host

MAIN, SIDE = "main", "side"
EXPIRES_S: Final = 2.0
APPLIED_S: Final = 5.0
POLL_S: Final = 0.05
FLAVOURS: Final = {
    Kind.BUMP_GOOD: Flavour.GOOD, Kind.BUMP_UNHEALTHY: Flavour.UNHEALTHY, Kind.BUMP_DYING: Flavour.DYING,
}  # fmt: skip
PROBES: Final = """
[[pools.{pool}.probes]]
kind = "agent"
period_s = 1
timeout_s = 1.5
failures = 3

[[pools.{pool}.probes]]
kind = "http"
port = 8080
period_s = 1
timeout_s = 1.5
failures = 3
"""
POOL: Final = """
[pools.{pool}]
image = "{image}"
warm = {warm}
priority = {priority}
cpus = 1
memory_mib = 256
ports = [22, 8080]
stop_grace_s = 0
startup_deadline_s = {deadline_s}
canary_attempts = 1
soak_s = 0
"""


class Actions:
    """Runs steps against one host."""

    def __init__(
        self,
        host: Host,
        expected: ExpectedState,
        clients: Clients,
        agent_control: AgentControl,
        versions: VersionSource,
        volume: Volume | None,
    ) -> None:
        self._host = host
        self._expected = expected
        self._clients = clients
        self._agent_control = agent_control
        self._versions = versions
        self._volume = volume
        self._journal = JournalReader(host.data_dir / "journal.sqlite")
        self._pending_crashes: list[asyncio.Task[None]] = []
        self._kinds: dict[Kind, Callable[[Step], Awaitable[None]]] = {
            Kind.LEASE: self._lease,
            Kind.LEASE_AND_HOLD: self._lease,
            Kind.LEASE_AND_FORGET: self._lease,
            Kind.RELEASE: self._release,
            Kind.RESIZE: self._resize,
            Kind.SIDE_POOL: self._side_pool,
            Kind.UNASSIGN: self._unassign,
            Kind.MALFORMED: self._malformed,
            Kind.BUMP_GOOD: self._bump,
            Kind.BUMP_UNHEALTHY: self._bump,
            Kind.BUMP_DYING: self._bump,
            Kind.KILL_VM: self._kill_vm,
            Kind.STOP_VM: self._stop_vm,
            Kind.DELETE_FILES: self._delete_files,
            Kind.CRASH: self._crash,
            Kind.CRASH_AT_EVENT: self._crash_at_event,
            Kind.CRASH_WITH_VM: self._crash_with_vm,
            Kind.OUTAGE: self._outage,
            Kind.FULL_DISK: self._full_disk,
        }

    async def run(self, steps: Sequence[Step]) -> None:
        """Run all steps, each at its time, and return when all have ended."""
        async with asyncio.TaskGroup() as group:
            for step in steps:
                group.create_task(self._run_step(step))

    async def cancel_pending_crashes(self) -> None:
        """Cancel the crashes whose event did not occur; wait for one that has begun. Raises its error."""
        pending, self._pending_crashes = self._pending_crashes, []
        for crash in pending:
            if not self._agent_control.is_busy:
                crash.cancel()
        for ended in await asyncio.gather(*pending, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended

    async def assign(self, pool: str, assigned: AssignedPool | None) -> None:
        """Change one pool of the assignment. None removes it."""
        self._expected.round.pools_changed.add(pool)
        if assigned is None:
            self._expected.pools.pop(pool, None)
        else:
            self._expected.pools[pool] = assigned
            if assigned.deadline_s < LONG_DEADLINE_S:
                self._expected.short_deadline_pools.add(pool)
        text = "".join(
            (POOL + PROBES).format(
                pool=name, image=one.version.reference, warm=one.warm, priority=one.priority, deadline_s=one.deadline_s
            )
            for name, one in self._expected.pools.items()
        )
        self._expected.file_is_good = True
        self._host.write_assignment(text)

    async def new_version(self, flavour: Flavour) -> Version:
        """Push a version and record it."""
        version = await self._versions.push(flavour)
        self._expected.versions[version.digest] = version
        return version

    def record_harm(self, name: str, harm: str) -> None:
        """Record that a VM is about to be harmed."""
        self._expected.harmed.setdefault(name, harm)
        self._expected.counts["vms_harmed"] += 1
        parts = parse(name)
        if parts is not None and parts.pool in self._expected.pools:
            self._expected.harms_of[self._expected.pools[parts.pool].version.digest] += 1

    async def _run_step(self, step: Step) -> None:
        await asyncio.sleep(step.at_s)
        await self._kinds[step.kind](step)

    async def _lease(self, step: Step) -> None:
        pools = sorted(self._expected.pools) or [MAIN]
        pool = pools[int(step.pick * len(pools))]
        holder = f"{step.kind}-{self._expected.round.number}-{step.pick:.6f}"
        forget = step.kind is Kind.LEASE_AND_FORGET
        claim = await self._clients.lease(
            pool, holder, wait_s=3 * step.lasts_s, ttl_s=EXPIRES_S if forget else None, keyed=step.pick * 7 % 1 < 0.5
        )
        if claim is not None and step.kind is Kind.LEASE:
            await asyncio.sleep(step.lasts_s)
            await self._clients.release(claim)

    async def _release(self, step: Step) -> None:
        held = [claim for claim in self._expected.held() if claim.expires_at_s is None]
        if held:
            await self._clients.release(held[int(step.pick * len(held))])

    async def _resize(self, step: Step) -> None:
        pool = MAIN if step.pick < 0.7 else SIDE
        if assigned := self._expected.pools.get(pool):
            await self.assign(pool, replace(assigned, warm=1 + assigned.warm % 2, priority=int(step.pick * 100) % 2))

    async def _side_pool(self, step: Step) -> None:
        if SIDE in self._expected.pools:
            await self.assign(SIDE, None)
        else:
            await self.assign(
                SIDE, AssignedPool(await self.new_version(Flavour.GOOD), 1, priority=int(step.pick * 100) % 2)
            )

    async def _unassign(self, step: Step) -> None:
        for pool in tuple(self._expected.pools):
            await self.assign(pool, None)

    async def _malformed(self, step: Step) -> None:
        if not await self._is_assignment_applied():
            return  # unknown which of the two files the agent must keep
        self._expected.file_is_good = False
        bad = ("[pools.main\n", "[pools.main]\nimage = 3\n", '[pools.main]\nimage = "x"\nwarm = 3\nmax = 2\n')
        self._host.write_assignment(bad[int(step.pick * len(bad))])

    async def _is_assignment_applied(self) -> bool:
        """Return whether the agent has applied the expected assignment, within `APPLIED_S`."""
        wanted = {
            pool: (assigned.version.reference, assigned.warm, assigned.priority)
            for pool, assigned in self._expected.pools.items()
        }
        for _ in range(round(APPLIED_S / POLL_S)):
            with contextlib.suppress(sqlite3.Error):
                assigned = self._journal.assigned()
                if wanted == {pool: (one["image"], one["warm"], one["priority"]) for pool, one in assigned.items()}:
                    return True
            await asyncio.sleep(POLL_S)
        return False

    async def _bump(self, step: Step) -> None:
        flavour = FLAVOURS[step.kind]
        pool = SIDE if SIDE in self._expected.pools and step.pick < 0.3 else MAIN
        assigned = self._expected.pools.get(pool)
        version = await self.new_version(flavour)
        deadline_s = self._expected.short_deadline_s() if flavour is Flavour.UNHEALTHY else LONG_DEADLINE_S
        warm = assigned.warm if assigned else 1 + int(step.pick * 100) % 2
        await self.assign(
            pool, AssignedPool(version, warm, priority=assigned.priority if assigned else 0, deadline_s=deadline_s)
        )

    async def _kill_vm(self, step: Step) -> None:
        if victim := self._victim(step.pick):
            name, pid = victim
            self.record_harm(name, "killed")
            _signal(pid, signal.SIGKILL)

    async def _stop_vm(self, step: Step) -> None:
        if victim := self._victim(step.pick):
            name, pid = victim
            self.record_harm(name, "stopped")
            _signal(pid, signal.SIGSTOP)

    async def _delete_files(self, step: Step) -> None:
        if victim := self._victim(step.pick):
            self.record_harm(victim[0], "files deleted")
            await asyncio.to_thread(self._host.backend.delete_files, victim[0])

    async def _crash(self, step: Step) -> None:
        await self._agent_control.crash(down_s=step.lasts_s / 2)

    async def _crash_at_event(self, step: Step) -> None:
        crash = self._agent_control.crash_at(step.event, delay_s=step.pick**3 * 0.2, down_s=step.lasts_s / 4)
        self._pending_crashes.append(asyncio.create_task(crash, name=str(step)))

    async def _crash_with_vm(self, step: Step) -> None:
        def kill() -> None:
            if victim := self._victim(step.pick):
                self.record_harm(victim[0], "killed")
                _signal(victim[1], signal.SIGKILL)

        await self._agent_control.crash(down_s=step.lasts_s / 2, while_down=kill)

    async def _outage(self, step: Step) -> None:
        self._expected.counts["outages"] += 1
        await self._versions.outage(step.lasts_s)

    async def _full_disk(self, step: Step) -> None:
        if self._volume is None:
            return
        self._expected.round.disk_was_full = True
        self._expected.counts["full_disks"] += 1
        await asyncio.to_thread(self._volume.fill)
        try:
            await asyncio.sleep(2 * step.lasts_s)
        finally:
            await asyncio.to_thread(self._volume.free)

    def _victim(self, pick: float) -> tuple[str, int] | None:
        """Return name and process id of a VM that has a process, or None."""
        processes = sorted(self._host.vm_pids().items())
        if not processes:
            return None
        name, pids = processes[int(pick * len(processes))]
        return name, pids[0]


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
