"""Run of one seed on its own host. After each round of faults the host must settle, and is checked."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import aiohttp

from agent.images.service import open_images
from scripts.lib.anka_backend import AnkaBackend
from scripts.lib.backend import list_names
from scripts.lib.chaos.actions import MAIN, Actions
from scripts.lib.chaos.agent_control import AgentControl, AgentEndedError
from scripts.lib.chaos.anka_versions import AnkaVersions
from scripts.lib.chaos.checker import FINAL_PHASES, RUNNING, HostSnapshot, check_host, unsettled_reasons
from scripts.lib.chaos.clients import Clients
from scripts.lib.chaos.event_trace import EventTrace, Finding, Violation
from scripts.lib.chaos.expected_state import LONG_DEADLINE_S, AssignedPool, ExpectedState, RoundActions
from scripts.lib.chaos.journal_reader import Document, JournalReader, Snapshot
from scripts.lib.chaos.steps import draw_round
from scripts.lib.chaos.tart_versions import TartVersions
from scripts.lib.chaos.tool_faults import ANKA, TART, TOOL_S, draw_fault
from scripts.lib.chaos.versions import Flavour, Versions, scratch_config
from scripts.lib.chaos.volume import Volume, can_mount
from scripts.lib.host import Host
from scripts.lib.tart_backend import TartBackend

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from pathlib import Path

    from scripts.lib.chaos.versions import VersionSource

SETTLE_S: Final = 150.0
"""Time a host gets to reach the desired state: several boots on a busy machine. Open breakers extend it."""
LONGEST_SETTLE_S: Final = 300.0
QUIET_S: Final = 0.4
"""A host is settled when it is in the desired state and had no event for this long."""
POLL_S: Final = 0.1
CONDITION_S: Final = 30.0
"""A condition may be as late as the agent's slow observation."""
HARMS_PER_VERSION: Final = 2
"""VMs of one version that may be harmed before a new version is assigned. The agent cannot distinguish this harm from
a bad image, and would open a breaker."""


@dataclass(slots=True)
class Outcome:
    """Result of one seed."""

    seed: int
    rounds: int = 0
    findings: list[Finding] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    expected: ExpectedState = field(default_factory=ExpectedState)


def _create_backend(hypervisor: str, host: Path) -> TartBackend | AnkaBackend | None:
    """Return the backend of a host; None for QEMU, the default of `Host`."""
    match hypervisor:
        case "tart":
            return TartBackend(host, home=host / "data" / "tart", command_timeout_s=TOOL_S)
        case "anka":
            return AnkaBackend(host, timeout_s=TOOL_S, start_timeout_s=TOOL_S)
    return None


class Run:
    """The rounds of one seed in `directory`."""

    def __init__(self, seed: int, directory: Path, *, slots: int, hypervisor: str = "qemu") -> None:
        self._rng = random.Random(seed)
        self._slots = slots
        self._directory = directory
        self._began_s = time.monotonic()
        host = directory / "host"
        self._backend = _create_backend(hypervisor, host)
        self._host = Host(host, self._backend)
        self._journal = JournalReader(self._host.data_dir / "journal.sqlite")
        self.outcome = Outcome(seed)
        self._expected = self.outcome.expected
        self._trace = EventTrace(self._expected)
        self._agent_control = AgentControl(self._host, self._expected, self._log)
        self._clients = Clients(self._host, self._expected)
        self._rolling: set[str] = set()  # pools whose rollout waited for a slot when the last round ended

    async def run_rounds(self, count: int) -> Outcome:
        """Run rounds until one finds a violation. Always ends all processes and unmounts the volume."""
        self._directory.mkdir(parents=True, exist_ok=True)
        async with AsyncExitStack() as stack:
            volume = await self._mount(stack)
            stack.push_async_callback(self._clean_up)
            versions = await self._open_versions(stack)
            await versions.build()
            self._actions = Actions(self._host, self._expected, self._clients, self._agent_control, versions, volume)
            self._host.configure(self._host.backend.config, slots=self._slots)
            await self._host.start()
            await self._collect_findings(self._warm_up())
            for number in range(1, count + 1):
                began_s = time.monotonic()
                found = await self._collect_findings(self._run_round(number))
                self.outcome.rounds = number
                self.outcome.seconds.append(time.monotonic() - began_s)
                if found:
                    break
            else:
                await self._collect_findings(self._release_all())
        return self.outcome

    async def _open_versions(self, stack: AsyncExitStack) -> VersionSource:
        if isinstance(self._backend, TartBackend):
            return TartVersions(self._backend)
        if isinstance(self._backend, AnkaBackend):
            return AnkaVersions(self._backend)
        images = await stack.enter_async_context(open_images(scratch_config(self._directory)))
        return Versions(self._directory, images)

    async def _mount(self, stack: AsyncExitStack) -> Volume | None:
        if not can_mount():
            self._log("cannot mount file systems: rounds skip the full disk")
            return None
        volume = Volume(self._directory / "volume.img", self._host.data_dir)
        await asyncio.to_thread(volume.mount)
        stack.push_async_callback(asyncio.to_thread, volume.unmount)
        return volume

    async def _collect_findings(self, work: Awaitable[list[Finding]]) -> list[Finding]:
        """Await a round's findings. An error of the round becomes a finding."""
        found: list[Finding] = []
        try:
            found = await work
        except* AgentEndedError as errors:
            found = [Finding(Violation.AGENT_ENDED, str(error)) for error in errors.exceptions]
        except* (TimeoutError, aiohttp.ClientError, RuntimeError, sqlite3.Error) as errors:
            found = [Finding(Violation.UNSETTLED, repr(error)) for error in errors.exceptions]
        for finding in found:
            self._log(f"FOUND {finding}")
        self.outcome.findings += found
        return found

    async def _warm_up(self) -> list[Finding]:
        """Fill the first pool, so that the first round has VMs to harm."""
        await self._prepare_pools()
        return await self._settle()

    async def _run_round(self, number: int) -> list[Finding]:
        steps = draw_round(self._rng)
        self._expected.round = RoundActions(number, pools_changed=set(self._rolling))
        await self._prepare_pools()
        for step in steps:
            self._log(f"round {number}: {step}")
        if self._backend is not None:
            await self._break_tool(self._backend, number)
        await self._actions.run(steps)
        if self._backend is not None:
            await asyncio.to_thread(self._backend.clear_faults)
        findings = await self._settle()
        findings += await self._check()
        pids, snapshot = await self._processes(), self._journal.snapshot()
        self._expected.last_pids = {name: pids[name][0] for name in snapshot.vms if name in pids}
        self._rolling = {pool for pool, rollout in snapshot.rollouts.items() if rollout["phase"] not in FINAL_PHASES}
        self._log(f"round {number} has ended: {len(pids)} VMs run, {len(self._expected.held())} leases are held")
        return findings

    async def _break_tool(self, backend: TartBackend | AnkaBackend, number: int) -> None:
        """Make the hypervisor tool fail in this round, one or a few times."""
        fault = draw_fault(self.outcome.seed, number, TART if isinstance(backend, TartBackend) else ANKA)
        switches = fault.on(sorted(await self._processes()))
        await asyncio.to_thread(lambda: backend.set_faults(**switches))
        self._expected.round.tool_failed = True
        self._expected.counts["tool_faults"] += 1
        self._log(f"round {number}: {fault}")

    async def _prepare_pools(self) -> None:
        """Assign a pool if there is none, and replace bad versions and versions with too many harmed VMs."""
        assigned = self._expected.pools.get(MAIN)
        if assigned is None:
            await self._actions.assign(MAIN, AssignedPool(await self._actions.new_version(Flavour.GOOD), 2))
            return
        for pool, assigned in tuple(self._expected.pools.items()):
            used_up = self._expected.harms_of[assigned.version.digest] >= HARMS_PER_VERSION
            if used_up or assigned.version.flavour is not Flavour.GOOD:
                version = await self._actions.new_version(Flavour.GOOD)
                await self._actions.assign(pool, replace(assigned, version=version, deadline_s=LONG_DEADLINE_S))

    async def _settle(self) -> list[Finding]:
        """Wait until the host is in the desired state and has no new events."""
        began_s, quiet_since_s, last, findings = time.monotonic(), time.monotonic(), -1, []
        while True:
            await asyncio.sleep(POLL_S)
            now_s = time.monotonic()
            try:
                snapshot = self._journal.snapshot()
                findings += self._trace.add_events(self._journal.events(after=self._trace.last_event))
            except sqlite3.Error:
                continue  # the agent is starting
            await self._act_as_operator(snapshot)
            reasons = self._pending_reasons(snapshot) or unsettled_reasons(snapshot, self._expected, slots=self._slots)
            if reasons or snapshot.last_event != last or self._agent_control.is_busy:
                quiet_since_s, last = now_s, snapshot.last_event
            elif now_s - quiet_since_s > QUIET_S:
                await self._actions.cancel_pending_crashes()
                reasons = await self._unrecorded_ends(snapshot)
                if not reasons and self._journal.snapshot().last_event == last and self._host.running:
                    return findings
            if now_s - began_s > self._patience_s(snapshot):
                await self._actions.cancel_pending_crashes()
                return [*findings, Finding(Violation.UNSETTLED, "; ".join(reasons))]

    def _patience_s(self, snapshot: Snapshot) -> float:
        """Return how long settling may take, with the time until open breakers close."""
        open_s = [float(breaker["open_until_s"]) - time.time() for breaker in snapshot.breakers.values()]
        return min(LONGEST_SETTLE_S, SETTLE_S + max([0.0, *open_s]))

    def _pending_reasons(self, snapshot: Snapshot) -> list[str]:
        """Return what must happen before the host can be checked: leases expire, the agent observes deleted files."""
        now_s = time.time()
        leases = [
            f"lease {claim.lease} has yet to expire"
            for claim in self._expected.held()
            if claim.expires_at_s is not None and now_s < claim.expires_at_s + 0.3
        ]
        gone = snapshot.vms.keys() - self._host.backend.list_vms_with_files()
        return leases + [f"the agent has not noticed that the files of {name} are gone" for name in sorted(gone)]

    async def _unrecorded_ends(self, snapshot: Snapshot) -> list[str]:
        """Return the VMs whose end is not recorded yet. On a full disk the agent retries every second."""
        pids = await asyncio.to_thread(self._host.vm_pids)
        gone = (name for name, row in snapshot.vms.items() if row["state"] in RUNNING and name not in pids)
        return [f"the end of {name} is not recorded" for name in sorted(gone)]

    async def _processes(self) -> dict[str, list[int]]:
        """Return the process ids of every VM. Waits up to `CONDITION_S` until none has two.

        While the agent makes a template of a VM, a second process splits its memory. No event marks begin or end.
        """
        deadline_s = time.monotonic() + CONDITION_S
        while True:
            pids = await asyncio.to_thread(self._host.vm_pids)
            if all(len(found) == 1 for found in pids.values()) or time.monotonic() > deadline_s:
                return pids
            await asyncio.sleep(POLL_S)

    async def _act_as_operator(self, snapshot: Snapshot) -> None:
        """Act as holders and operators: release leases of unhealthy VMs, and replace versions whose guests die."""
        for claim in self._expected.held():
            unhealthy = self._trace.was_unhealthy_while_leased(claim.vm)
            if unhealthy and claim.lease in snapshot.leases:
                await self._clients.release(claim)
        for lease_id, lease in snapshot.leases.items():
            if lease["holder"] in self._expected.unanswered:
                await self._clients.release_unanswered(lease_id)
        for pool, assigned in tuple(self._expected.pools.items()):
            rollout = snapshot.rollouts.get(pool)
            phase = rollout["phase"] if rollout else ""
            if assigned.version.flavour is Flavour.DYING and phase == "serving":
                await self._actions.assign(
                    pool, replace(assigned, version=await self._actions.new_version(Flavour.GOOD))
                )
            if assigned.deadline_s < LONG_DEADLINE_S and phase == "rolled-back":
                await self._actions.assign(pool, replace(assigned, deadline_s=LONG_DEADLINE_S))

    async def _check(self) -> list[Finding]:
        """Check the host."""
        await self._agent_control.check()
        processes = await self._processes()
        served = {vm["name"]: vm["state"] for vm in (await self._host.get("/v1/vms"))["vms"]}
        host = HostSnapshot(
            snapshot=self._journal.snapshot(),
            processes=processes,
            files=_list_records(self._host.data_dir / "vms"),
            evidence=list_names(self._host.data_dir / "evidence"),
            served=served,
            now_s=time.time(),
        )
        findings = self._trace.add_events(self._journal.events(after=self._trace.last_event))
        findings += check_host(host, self._expected, self._trace)
        return findings + await self._check_assignment_condition()

    async def _check_assignment_condition(self) -> list[Finding]:
        """Check that the condition AssignmentValid matches the file. A full disk delays the condition."""

        def is_reported(host: Document, _: object) -> bool:
            problem = next(one["problem"] for one in host["conditions"] if one["type"] == "AssignmentValid")
            return bool(problem) != self._expected.file_is_good

        try:
            await self._host.wait_until(is_reported, timeout_s=CONDITION_S)
        except TimeoutError:
            return [Finding(Violation.UNEXPLAINED, "the condition AssignmentValid does not match the assignment file")]
        return []

    async def _release_all(self) -> list[Finding]:
        """Release all leases and pools; return what is left of any VM."""
        self._expected.round = RoundActions(self.outcome.rounds + 1)
        for claim in self._expected.held():
            await self._clients.release(claim)
        left = await self._host.remove_all_vms()
        left += await self._leftover_templates()
        code = await self._host.stop()
        findings = [Finding(Violation.LEAKED, f"at the end: {one}") for one in left]
        if code:
            findings.append(Finding(Violation.AGENT_ENDED, f"with exit code {code} after SIGTERM"))
        return findings

    async def _leftover_templates(self) -> list[str]:
        """Return the templates that still exist although no pool is assigned."""
        folder = self._host.data_dir / "templates"
        try:
            await self._host.wait_until(lambda *_: not list_names(folder), timeout_s=CONDITION_S)
        except TimeoutError:
            return sorted(f"template {name}" for name in list_names(folder))
        return []

    async def _clean_up(self) -> None:
        """End every process. After a violation, keep journal, logs and evidence."""
        await self._host.kill_all()
        if self.outcome.findings or sys.exc_info()[0] is not None:
            ignore = shutil.ignore_patterns("images", "vms", "tart", "*.sock", "filler", "lost+found")
            await asyncio.to_thread(
                shutil.copytree, self._host.data_dir, self._directory / "kept", ignore=ignore, dirs_exist_ok=True
            )

    def _log(self, text: str) -> None:
        line = f"[seed {self.outcome.seed} {time.monotonic() - self._began_s:7.1f} s] {text}\n"
        sys.stderr.write(line)
        with (self._directory / "chaos.log").open("a") as file:
            file.write(f"{time.time():.3f} {line}")


def _list_records(directory: Path) -> frozenset[str]:
    """Return the names of VMs that have files in `directory`. An Anka VM has one file with its name."""
    return frozenset(entry.removesuffix(".new").removesuffix(".json") for entry in list_names(directory))
