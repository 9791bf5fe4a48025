"""The chaos checker: it finds each kind of violation, and none on a clean host."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from scripts.lib.chaos.checker import HostSnapshot, check_host, unsettled_reasons
from scripts.lib.chaos.event_trace import EventTrace, Violation
from scripts.lib.chaos.expected_state import AssignedPool, Claim, ClaimState, ExpectedState
from scripts.lib.chaos.journal_reader import Snapshot
from scripts.lib.chaos.steps import Kind, draw_round
from scripts.lib.chaos.versions import Flavour, Version

if TYPE_CHECKING:
    from collections.abc import Callable

VM, OTHER, LEASE = "hearth-main-a", "hearth-main-b", "lease-1"
GOOD = Version("layout:good", "sha256:good", Flavour.GOOD)
UNHEALTHY = Version("layout:unhealthy", "sha256:unhealthy", Flavour.UNHEALTHY)
NOW_S = 1000.0


class Case:
    """A host with one ready VM and no violation, which a test then changes."""

    def __init__(self) -> None:
        self.expected = ExpectedState(
            pools={"main": AssignedPool(GOOD, 1)}, versions={one.digest: one for one in (GOOD, UNHEALTHY)}
        )
        self.trace = EventTrace(self.expected)
        self.rows = {VM: row(VM)}
        self.leases: dict[str, Any] = {}
        self.processes = {VM: [7]}
        self.files = frozenset({VM})
        self.findings: list[Any] = []
        self.add_events("vm-creating", "vm-starting", "vm-ready", vm=VM)

    def add_events(self, *kinds: str, **about: Any) -> None:
        for kind in kinds:
            self.findings += self.trace.add_events(
                [{"kind": kind, "sequence": self.trace.last_event + 1, "image": GOOD.digest, "pool": "main", **about}]
            )

    def lease(self, claim: Claim) -> None:
        self.expected.claims.append(claim)
        self.add_events("lease-granted", vm=claim.vm, lease=claim.lease)
        self.rows[claim.vm] = {**row(claim.vm), "state": "leased", "lease_id": claim.lease}
        self.leases[claim.lease] = {"vm": claim.vm, "holder": claim.holder}

    def snapshot(self) -> Snapshot:
        rollout = {"target": GOOD.digest, "serving": GOOD.digest, "phase": "serving"}
        return Snapshot(self.rows, self.leases, {"main": rollout})

    def violations(self) -> list[Violation]:
        served = {name: one["state"] for name, one in self.rows.items()}
        host = HostSnapshot(self.snapshot(), self.processes, self.files, frozenset(), served, NOW_S)
        return [finding.violation for finding in (*self.findings, *check_host(host, self.expected, self.trace))]


def row(name: str) -> dict[str, Any]:
    return {"name": name, "pool": "main", "state": "ready", "image": GOOD.digest, "lease_id": None}


def claim(vm: str = VM, lease: str = LEASE) -> Claim:
    return Claim(lease, vm, "main", f"holder of {lease}", 1, None)


def process_without_row(case: Case) -> None:
    case.processes[OTHER] = [8]


def row_without_process(case: Case) -> None:
    del case.processes[VM]


def row_without_files(case: Case) -> None:
    case.files = frozenset()


def files_without_row(case: Case) -> None:
    case.files |= {OTHER}


def released_lease_stays(case: Case) -> None:
    case.lease(replace(claim(), state=ClaimState.RELEASED))


def lease_without_client(case: Case) -> None:
    case.lease(claim())
    case.expected.claims.clear()


def lease_vanishes(case: Case) -> None:
    case.lease(claim())
    case.leases.clear()


def lease_expires_too_soon(case: Case) -> None:
    case.lease(replace(claim(), expires_at_s=NOW_S + 60))
    case.add_events("lease-expired", "vm-stopping", "vm-gone", vm=VM, lease=LEASE)
    case.leases.clear()
    case.rows.clear()
    case.processes.clear()
    case.files = frozenset()


def vm_vanishes(case: Case) -> None:
    case.rows.clear()
    case.processes.clear()
    case.files = frozenset()


def vm_is_leased_twice(case: Case) -> None:
    case.lease(claim())
    case.add_events("lease-granted", vm=VM, lease="lease-2")


def healthy_vm_fails(case: Case) -> None:
    case.add_events("vm-failed", vm=VM, cause="probe-failed", detail="no answer")


def healthy_vm_has_another_process(case: Case) -> None:
    case.expected.last_pids = {VM: 6}


def healthy_vm_is_replaced(case: Case) -> None:
    case.expected.last_pids = {VM: 7}
    case.add_events("vm-stopping", "vm-gone", vm=VM)
    vm_vanishes(case)


def failure_without_cause(case: Case) -> None:
    case.expected.harmed[VM] = "killed"
    case.add_events("vm-failed", vm=VM)


def ready_after_its_end(case: Case) -> None:
    case.add_events("vm-stopping", "vm-ready", vm=VM)


@pytest.mark.parametrize(
    ("change", "violation"),
    [
        (process_without_row, Violation.LEAKED),
        (row_without_process, Violation.LEAKED),
        (row_without_files, Violation.LEAKED),
        (files_without_row, Violation.LEAKED),
        (released_lease_stays, Violation.LEAKED),
        (lease_without_client, Violation.LEAKED),
        (lease_vanishes, Violation.LOST),
        (lease_expires_too_soon, Violation.LOST),
        (vm_vanishes, Violation.LOST),
        (vm_is_leased_twice, Violation.DOUBLE_LEASED),
        (healthy_vm_fails, Violation.HEALTHY_RESTARTED),
        (healthy_vm_has_another_process, Violation.HEALTHY_RESTARTED),
        (healthy_vm_is_replaced, Violation.HEALTHY_RESTARTED),
        (failure_without_cause, Violation.UNEXPLAINED),
        (ready_after_its_end, Violation.UNEXPLAINED),
    ],
)
def test_violation_is_found(change: Callable[[Case], None], violation: Violation) -> None:
    case = Case()
    assert case.violations() == []
    change(case)
    assert set(case.violations()) == {violation}


def test_allowed_removal_is_not_a_violation() -> None:
    killed, resized = Case(), Case()
    for case in (killed, resized):
        case.expected.last_pids = {VM: 7}
    killed.expected.harmed[VM] = "killed"
    killed.add_events("vm-failed", vm=VM, cause="exited", detail="its process ended")
    resized.expected.round.pools_changed.add("main")
    for case in (killed, resized):
        case.add_events("vm-stopping", "vm-gone", vm=VM)
        vm_vanishes(case)
        assert case.violations() == []


@pytest.mark.parametrize("state", ["creating", "starting", "stopping", "failed"])
def test_host_is_unsettled_while_vm_is_in_transition(state: str) -> None:
    case = Case()
    assert unsettled_reasons(case.snapshot(), case.expected, slots=2) == []
    case.rows[OTHER] = {**row(OTHER), "state": state}
    assert unsettled_reasons(case.snapshot(), case.expected, slots=2) == [f"{OTHER} is {state}"]


def test_host_is_unsettled_until_pools_match_assignment() -> None:
    case = Case()
    case.expected.pools["main"] = AssignedPool(UNHEALTHY, 2)
    reasons = unsettled_reasons(case.snapshot(), case.expected, slots=2)
    assert reasons == [
        "main does not have its assigned version as target yet",
        "main has 1 ready VMs and wants 2",
        "1 VMs are ready, 2 slots are not leased, 2 VMs are wanted",
    ]


def test_seed_draws_same_rounds_and_all_kinds() -> None:
    rounds = [draw_round(random.Random(7)) for _ in range(2)]
    assert rounds[0] == rounds[1]
    rng = random.Random(1)
    assert {step.kind for _ in range(200) for step in draw_round(rng)} == set(Kind)
