"""The judge finds what it is for: each fault is shown to it once, and a clean host is called clean."""

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
    """A host with one ready VM, about which everything is well until a test says otherwise."""

    def __init__(self) -> None:
        self.expected = ExpectedState(
            pools={"main": AssignedPool(GOOD, 1)}, versions={one.digest: one for one in (GOOD, UNHEALTHY)}
        )
        self.trace = EventTrace(self.expected)
        self.rows = {VM: row(VM)}
        self.leases: dict[str, Any] = {}
        self.processes = {VM: [7]}
        self.files = frozenset({VM})
        self.told: list[Any] = []
        self.happens("vm-creating", "vm-starting", "vm-ready", vm=VM)

    def happens(self, *kinds: str, **about: Any) -> None:
        for kind in kinds:
            self.told += self.trace.add_events(
                [{"kind": kind, "sequence": self.trace.last_event + 1, "image": GOOD.digest, "pool": "main", **about}]
            )

    def lease(self, claim: Claim) -> None:
        self.expected.claims.append(claim)
        self.happens("lease-granted", vm=claim.vm, lease=claim.lease)
        self.rows[claim.vm] = {**row(claim.vm), "state": "leased", "lease_id": claim.lease}
        self.leases[claim.lease] = {"vm": claim.vm, "holder": claim.holder}

    def snapshot(self) -> Snapshot:
        rollout = {"target": GOOD.digest, "serving": GOOD.digest, "phase": "serving"}
        return Snapshot(self.rows, self.leases, {"main": rollout})

    def faults(self) -> list[Violation]:
        served = {name: one["state"] for name, one in self.rows.items()}
        host = HostSnapshot(self.snapshot(), self.processes, self.files, frozenset(), served, NOW_S)
        return [finding.violation for finding in (*self.told, *check_host(host, self.expected, self.trace))]


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


def lease_nobody_was_told_of(case: Case) -> None:
    case.lease(claim())
    case.expected.claims.clear()


def lease_vanishes(case: Case) -> None:
    case.lease(claim())
    case.leases.clear()


def lease_expires_too_soon(case: Case) -> None:
    case.lease(replace(claim(), expires_at_s=NOW_S + 60))
    case.happens("lease-expired", "vm-stopping", "vm-gone", vm=VM, lease=LEASE)
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
    case.happens("lease-granted", vm=VM, lease="lease-2")


def healthy_vm_fails(case: Case) -> None:
    case.happens("vm-failed", vm=VM, cause="probe-failed", detail="no answer")


def healthy_vm_has_another_process(case: Case) -> None:
    case.expected.last_pids = {VM: 6}


def healthy_vm_is_replaced(case: Case) -> None:
    case.expected.last_pids = {VM: 7}
    case.happens("vm-stopping", "vm-gone", vm=VM)
    vm_vanishes(case)


def failure_without_cause(case: Case) -> None:
    case.expected.harmed[VM] = "killed"
    case.happens("vm-failed", vm=VM)


def ready_after_its_end(case: Case) -> None:
    case.happens("vm-stopping", "vm-ready", vm=VM)


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (process_without_row, Violation.LEAKED),
        (row_without_process, Violation.LEAKED),
        (row_without_files, Violation.LEAKED),
        (files_without_row, Violation.LEAKED),
        (released_lease_stays, Violation.LEAKED),
        (lease_nobody_was_told_of, Violation.LEAKED),
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
def test_each_fault_is_found(spoil: Callable[[Case], None], fault: Violation) -> None:
    case = Case()
    assert case.faults() == []
    spoil(case)
    assert set(case.faults()) == {fault}


def test_harm_and_wishes_excuse_what_they_cause() -> None:
    killed, resized = Case(), Case()
    for case in (killed, resized):
        case.expected.last_pids = {VM: 7}
    killed.expected.harmed[VM] = "killed"
    killed.happens("vm-failed", vm=VM, cause="exited", detail="its process ended")
    resized.expected.round.pools_changed.add("main")
    for case in (killed, resized):
        case.happens("vm-stopping", "vm-gone", vm=VM)
        vm_vanishes(case)
        assert case.faults() == []


@pytest.mark.parametrize("state", ["creating", "starting", "stopping", "failed"])
def test_a_host_settles_only_when_every_vm_has(state: str) -> None:
    case = Case()
    assert unsettled_reasons(case.snapshot(), case.expected, slots=2) == []
    case.rows[OTHER] = {**row(OTHER), "state": state}
    assert unsettled_reasons(case.snapshot(), case.expected, slots=2) == [f"{OTHER} is {state}"]


def test_a_host_settles_only_on_the_wished_number_and_version() -> None:
    case = Case()
    case.expected.pools["main"] = AssignedPool(UNHEALTHY, 2)
    reasons = unsettled_reasons(case.snapshot(), case.expected, slots=2)
    assert reasons == [
        "main is not told of its version yet",
        "main has 1 ready VMs and wants 2",
        "1 VMs are ready, 2 slots are not leased, 2 VMs are wanted",
    ]


def test_a_seed_draws_the_same_rounds_again_and_every_kind_in_time() -> None:
    rounds = [draw_round(random.Random(7)) for _ in range(2)]
    assert rounds[0] == rounds[1]
    rng = random.Random(1)
    assert {step.kind for _ in range(200) for step in draw_round(rng)} == set(Kind)
