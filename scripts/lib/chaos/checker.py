"""Checker of a settled host: owners of processes and files, leases, unharmed VMs. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from scripts.lib.chaos.event_trace import Finding, Violation
from scripts.lib.chaos.expected_state import ClaimState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.lib.chaos.event_trace import EventTrace
    from scripts.lib.chaos.expected_state import Claim, ExpectedState
    from scripts.lib.chaos.journal_reader import Document, Snapshot

EARLY_S: Final = 0.5
"""Allowed difference between clocks when a lease expires."""
FINAL_PHASES: Final = ("serving", "rolled-back")
"""Phases in which a rollout is complete."""
RUNNING: Final = frozenset({"starting", "ready", "leased"})
"""States of a VM that must have a process."""


@dataclass(frozen=True, slots=True)
class HostSnapshot:
    """A host at one moment: journal, VM processes by name, VM files, evidence, VM states from the API."""

    snapshot: Snapshot
    processes: dict[str, list[int]]
    files: frozenset[str]
    evidence: frozenset[str]
    served: dict[str, str]  # VM: state, from the API
    now_s: float


def check_host(host: HostSnapshot, expected: ExpectedState, trace: EventTrace) -> list[Finding]:
    """Return all violations on a settled host. Marks the claims that ended as expected."""
    return [
        *_check_owners(host, trace),
        *_check_rows(host),
        *_check_api(host),
        *_check_leases(host, expected, trace),
        *_check_unknown_leases(host, expected),
        *_check_restarts(host, expected, trace),
        *_check_events(host, trace),
    ]


def _check_owners(host: HostSnapshot, trace: EventTrace) -> Iterator[Finding]:
    rows = host.snapshot.vms
    for name, pids in host.processes.items():
        if name not in rows:
            yield Finding(Violation.LEAKED, f"processes {pids} of {name}, which has no row")
        elif len(pids) > 1:
            yield Finding(Violation.LEAKED, f"{name} has {len(pids)} processes: {pids}")
    for name in host.files - rows.keys():
        yield Finding(Violation.LEAKED, f"files of {name}, which has no row")
    for name in host.evidence:
        if not (name in trace.vms and trace.vms[name].seen["vm-failed"]):
            yield Finding(Violation.LEAKED, f"evidence of {name}, which never failed")


def _check_rows(host: HostSnapshot) -> Iterator[Finding]:
    for name, row in host.snapshot.vms.items():
        for kind, names in (("process", host.processes), ("files", host.files)):
            if row["state"] in RUNNING and name not in names:
                yield Finding(Violation.LEAKED, f"{name} is {row['state']} in the journal, but has no {kind}")


def _check_api(host: HostSnapshot) -> Iterator[Finding]:
    recorded = {name: row["state"] for name, row in host.snapshot.vms.items()}
    if recorded != host.served:
        yield Finding(Violation.UNEXPLAINED, f"the API returns {host.served}, the journal has {recorded}")


def _check_leases(host: HostSnapshot, expected: ExpectedState, trace: EventTrace) -> Iterator[Finding]:
    """Find granted leases that are missing or have the wrong VM."""
    owners: dict[str, str] = {}
    for lease_id, lease in host.snapshot.leases.items():
        if lease["vm"] in owners:
            yield Finding(Violation.DOUBLE_LEASED, f"{lease['vm']} is held by {owners[lease['vm']]} and {lease_id}")
        owners[lease["vm"]] = lease_id
        if host.snapshot.leased(lease["vm"]) != lease_id:
            yield Finding(
                Violation.LOST, f"lease {lease_id} holds {lease['vm']}, but the VM's row does not have that lease"
            )
    for claim in expected.claims:
        if claim.state is not ClaimState.ENDED:
            yield from _check_claim(claim, host, expected, trace)


def _check_claim(claim: Claim, host: HostSnapshot, expected: ExpectedState, trace: EventTrace) -> Iterator[Finding]:
    row = host.snapshot.leases.get(claim.lease)
    if row is not None:
        if claim.state is ClaimState.RELEASED:
            yield Finding(Violation.LEAKED, f"lease {claim.lease} was released and still exists")
        elif claim.expires_at_s is not None and host.now_s > claim.expires_at_s + 2:
            yield Finding(Violation.LEAKED, f"lease {claim.lease} has expired and still exists")
        elif row["vm"] != claim.vm:
            yield Finding(Violation.LOST, f"lease {claim.lease} was for {claim.vm} and is for {row['vm']} now")
        return
    ended = trace.lease_ends.get(claim.lease)
    allowed = {
        "lease-released": claim.state is ClaimState.RELEASED,
        "lease-expired": claim.expires_at_s is not None and host.now_s > claim.expires_at_s - EARLY_S,
        "lease-broken": claim.vm in expected.harmed or expected.is_bad_version(trace.vms[claim.vm].image),
    }
    if ended is None:
        yield Finding(Violation.LOST, f"lease {claim.lease} on {claim.vm} is gone without an event")
    elif not allowed[ended]:
        yield Finding(Violation.LOST, f"lease {claim.lease} on {claim.vm} ended with {ended} without a reason")
    claim.state = ClaimState.ENDED


def _check_unknown_leases(host: HostSnapshot, expected: ExpectedState) -> Iterator[Finding]:
    known = {claim.lease for claim in expected.claims}
    for lease_id, lease in host.snapshot.leases.items():
        if lease_id not in known and lease["holder"] not in expected.unanswered:
            yield Finding(Violation.LEAKED, f"lease {lease_id} of {lease['holder']}, which was refused a lease")


def _check_restarts(host: HostSnapshot, expected: ExpectedState, trace: EventTrace) -> Iterator[Finding]:
    """Find unharmed VMs that ran at the end of the last round and were restarted or removed since."""
    for name, pid in expected.last_pids.items():
        if name in expected.harmed or expected.is_bad_version(trace.vms[name].image):
            continue
        now = host.processes.get(name)
        if now is not None and now != [pid]:
            yield Finding(Violation.HEALTHY_RESTARTED, f"{name} was process {pid} and is {now}")
        elif name not in host.snapshot.vms and not _is_removal_expected(name, expected, trace):
            yield Finding(Violation.HEALTHY_RESTARTED, f"{name} was healthy and wanted, and is gone")


def _is_removal_expected(name: str, expected: ExpectedState, trace: EventTrace) -> bool:
    """Return whether the agent may have removed a healthy VM.

    Valid reasons: its lease ended; its pool changed; or another pool preempted it, by priority or by a request.
    """
    vm_trace = trace.vms[name]
    by_lease = any(vm_trace.seen[end] for end in ("lease-released", "lease-expired"))
    preempted = len(
        {assigned.priority for assigned in expected.pools.values()}
    ) > 1 or expected.round.pools_requested - {vm_trace.pool}
    return by_lease or bool(preempted) or vm_trace.pool in expected.round.pools_changed | expected.round.pools_refused


def _check_events(host: HostSnapshot, trace: EventTrace) -> Iterator[Finding]:
    """Find VMs that ended without a final event, and rows of VMs without any event."""
    for name, vm_trace in trace.vms.items():
        if not vm_trace.seen["vm-gone"] and name not in host.snapshot.vms:
            yield Finding(Violation.LOST, f"{name} is gone, and its last event is {vm_trace.last}")
    for name in host.snapshot.vms.keys() - trace.vms.keys():
        yield Finding(Violation.UNEXPLAINED, f"{name} has a row and no event")


def unsettled_reasons(snapshot: Snapshot, expected: ExpectedState, *, slots: int) -> list[str]:
    """Return why the host is not in the desired state; empty when it is."""
    reasons = [
        f"{name} is {row['state']}" for name, row in snapshot.vms.items() if row["state"] not in ("ready", "leased")
    ]
    ready = [row for row in snapshot.vms.values() if row["state"] == "ready"]
    reasons += [f"{row['name']} has no assigned pool" for row in ready if row["pool"] not in expected.pools]
    free = slots - sum(row["state"] == "leased" for row in snapshot.vms.values())
    space = free
    wants: dict[str, int] = {}
    for pool, assigned in expected.pools.items():
        rollout = snapshot.rollouts.get(pool)
        reasons += _rollout_reasons(pool, rollout, expected, ready, full=len(snapshot.vms) >= slots)
        wants[pool] = assigned.warm if rollout and rollout.get("serving") else 0
    for pool in sorted(wants, key=lambda pool: -expected.pools[pool].priority):
        equals = [other for other in wants if expected.pools[other].priority == expected.pools[pool].priority]
        have, wanted = sum(row["pool"] == pool for row in ready), wants[pool]
        least = max(0, min(wanted, space - sum(wants[other] for other in equals if other != pool)))
        if not least <= have <= wanted:
            reasons.append(f"{pool} has {have} ready VMs and wants {wanted}")
        space = max(0, space - have)
    if len(ready) != min(max(0, free), sum(wants.values())):
        reasons.append(f"{len(ready)} VMs are ready, {free} slots are not leased, {sum(wants.values())} VMs are wanted")
    return reasons


def _rollout_reasons(
    pool: str, rollout: Document | None, expected: ExpectedState, ready: list[Document], *, full: bool
) -> Iterator[str]:
    if rollout is None:
        yield f"{pool} has no rollout"
        return
    if rollout["target"] != expected.pools[pool].version.digest:
        yield f"{pool} does not have its assigned version as target yet"
    mine = [row for row in ready if row["pool"] == pool]
    # If leases and min_ready leave no slot for a VM of the new version, the old version continues to serve.
    stuck = full and len(mine) <= (1 if expected.pools[pool].warm > 1 else 0)
    if rollout["phase"] not in FINAL_PHASES:
        if not stuck:
            yield f"the rollout of {pool} is {rollout['phase']}"
    elif any(row["image"] != rollout["serving"] for row in mine):
        yield f"{pool} has VMs of another version than the serving one"
