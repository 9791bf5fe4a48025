"""`record`: every fact has a handler, facts about removed objects change nothing, and successes reset breakers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from agent.domain import actions, facts
from agent.domain.breaker import Breaker, BreakerKey, Scope
from agent.domain.errors import (
    LeaseNotFoundError,
    NothingToRetryError,
    NothingToUndoError,
    PoolUnknownError,
    VmLeasedError,
    VmUnknownError,
)
from agent.domain.events import EventKind
from agent.domain.failure_attribution import CAUSES
from agent.domain.model import Cause, Failure, HostMode, Lease, LeaseRequest, Mode, PoolSpec, Vm, VmSize
from agent.domain.record import HANDLERS, RESETS, record
from agent.domain.rollout import Phase, Rollout
from agent.domain.states import VmState
from agent.domain.stored_state import Changes, Put, StoredState
from agent.domain.text import DETAIL_LIMIT_BYTES
from agent.engine.database import EVENT, TABLES

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from agent.domain.facts import Fact

NOW_S = 1000.0
IMAGE = "sha256:v1"
READY = Vm("ready", "ci", IMAGE, VmState.READY, VmSize(), 1.0, 2.0, 3.0)
LEASED = replace(READY, name="leased", state=VmState.LEASED, lease_id="l1")
LEASE = Lease("l1", "ci", "leased", "job", 60, 900, 960)
ROLLOUT = Rollout("ci", IMAGE, IMAGE, Phase.SERVING, 1.0)


def state_of(*records: Any) -> StoredState:
    return StoredState().apply(Changes(tuple(Put(entry) for entry in records)))


STATE = state_of(READY, LEASED, LEASE, ROLLOUT)


def after(fact: Fact | actions.Action, state: StoredState = STATE) -> StoredState:
    return state.apply(record(state, fact, NOW_S, 1.0))


def events_of(fact: Fact | actions.Action, state: StoredState = STATE) -> list[EventKind]:
    return [event.kind for event in record(state, fact, NOW_S, 1.0).events]


def leaf_classes(module: ModuleType, base: type) -> set[type]:
    """Return the classes of a module that derive from `base` and have no class of the module deriving from them."""
    classes = {found for found in vars(module).values() if isinstance(found, type) and issubclass(found, base)}
    return {found for found in classes if not any(found in other.__mro__[1:] for other in classes)}


def test_every_fact_and_action_has_a_handler() -> None:
    assert HANDLERS.keys() == leaf_classes(facts, facts.Fact) | leaf_classes(actions, actions.Action)


def test_every_cause_is_attributed() -> None:
    assert CAUSES.keys() == set(Cause)


@pytest.mark.parametrize(
    "fact",
    [
        facts.VmCloned("gone", "boot", 1.0),
        facts.CloneFailed("gone", Cause.CLONE_FAILED, "no"),
        facts.SuspendFailed("ready", Cause.SUSPEND_FAILED, "no"),  # it is not suspending any more
        facts.ResumeFailed("ready", Cause.RESUME_FAILED, "no"),
        facts.VmSuspended("ready", 1.0),
        facts.VmRemoved("gone", 1.0),
        facts.StartupProbesPassed("ready"),
        facts.ProbeFailed("gone", Cause.PROBE_FAILED, "no"),
        facts.ProcessExited("gone", 1),
        facts.VmAdopted("gone", 1),
        actions.ExpireLease("leased", "ended"),
        actions.GrantLease("leased", LeaseRequest("r", "ci", 1.0, "job", 60)),
        facts.ModeSet(Mode.OPEN, ""),
        facts.RolloutsAdvanced((ROLLOUT,)),
    ],
    ids=lambda fact: type(fact).__name__,
)
def test_outdated_fact_changes_nothing(fact: Fact | actions.Action) -> None:
    assert record(STATE, fact, NOW_S, 1.0) == Changes()


@pytest.mark.parametrize(
    ("fact", "error"),
    [
        (facts.ReplacementRequested("gone", ""), VmUnknownError),
        (facts.ReplacementRequested("leased", ""), VmLeasedError),
        (facts.LeaseReleased("ended"), LeaseNotFoundError),
        (facts.LeaseRenewed("ended", 60), LeaseNotFoundError),
        (facts.RolloutRetried("other"), PoolUnknownError),
        (facts.RolloutRetried("ci"), NothingToRetryError),
        (facts.RolloutUndone("ci", ""), NothingToUndoError),
    ],
)
def test_request_that_cannot_be_met_raises(fact: Fact, error: type[Exception]) -> None:
    with pytest.raises(error):
        record(STATE, fact, NOW_S, 1.0)


def test_probe_failure_notifies_the_holder_of_a_leased_vm() -> None:
    state = after(facts.ProbeFailed("leased", Cause.PROBE_FAILED, "no answer"))
    assert state.vms["leased"].state is VmState.LEASED
    assert state.vms["leased"].reported_failure == Failure(Cause.PROBE_FAILED, "no answer", NOW_S)
    assert state.leases == {"l1": LEASE}


def test_exit_of_a_leased_vm_breaks_its_lease() -> None:
    fact = facts.ProcessExited("leased", 1, "killed")
    state = after(fact)
    assert state.vms["leased"].state is VmState.FAILED
    assert state.vms["leased"].failure == Failure(Cause.EXITED, "its process ended with code 1: killed", NOW_S)
    assert state.leases == {}
    assert events_of(fact) == [EventKind.VM_FAILED, EventKind.LEASE_BROKEN]


def test_granted_lease_has_the_id_of_its_request() -> None:
    request = LeaseRequest("r1", "ci", NOW_S - 5, "job", 60, "key")
    state = after(facts.VmGranted("ready", request))
    assert state.leases["r1"] == Lease("r1", "ci", "ready", "job", 60, NOW_S, NOW_S + 60, "key")
    assert state.vms["ready"].lease_id == "r1"


def test_released_lease_tears_its_vm_down() -> None:
    fact = facts.LeaseReleased("l1")
    state = after(fact)
    assert (state.leases, state.vms["leased"].state) == ({}, VmState.STOPPING)
    assert events_of(fact) == [EventKind.LEASE_RELEASED, EventKind.VM_STOPPING]


def test_new_vm_is_the_replacement_of_a_suspended_one() -> None:
    suspended = replace(READY, name="standby", state=VmState.STANDBY, replacement_due=True)
    create = actions.CreateVm("new", PoolSpec("ci", "reg/ci:1", standby=1), IMAGE)
    state = after(create, state_of(suspended))
    assert not state.vms["standby"].replacement_due
    assert state.vms["new"].state is VmState.CREATING


def test_mode_keeps_its_start_when_only_the_reason_changes() -> None:
    state = after(facts.ModeSet(Mode.CORDONED, "other disks"), state_of(HostMode(Mode.CORDONED, 5.0, "new disks")))
    assert state.mode == HostMode(Mode.CORDONED, 5.0, "other disks")


def test_unassigned_pool_loses_its_rollout() -> None:
    assert after(facts.RolloutsAdvanced(())).rollouts == {}


RESETTING = [
    (facts.VmRemoved("ready", 1.0), BreakerKey(Scope.VM, "ready")),
    (facts.StrayRemoved("stray"), BreakerKey(Scope.VM, "stray")),
    (facts.ReferenceResolved("reg/ci:1", IMAGE), BreakerKey(Scope.REFERENCE, "reg/ci:1")),
    (facts.PullFinished(IMAGE, "reg/ci:1", 1.0), BreakerKey(Scope.IMAGE, IMAGE)),
    (facts.ImageEvicted(IMAGE), BreakerKey(Scope.IMAGE, IMAGE)),
    (facts.TemplateSaved("t", "ready", 1.0), BreakerKey(Scope.TEMPLATE, "t")),
    (facts.TemplateDropped("t"), BreakerKey(Scope.TEMPLATE, "t")),
    (facts.RolloutRetried("ci"), BreakerKey(Scope.IMAGE, IMAGE)),
]


@pytest.mark.parametrize(("fact", "key"), RESETTING, ids=lambda value: type(value).__name__)
def test_success_resets_its_breaker_only(fact: Fact, key: BreakerKey) -> None:
    other = BreakerKey(Scope.IMAGE, "sha256:other")
    state = STATE.apply(Changes((Put(Breaker(key, 3, NOW_S + 60, NOW_S)), Put(Breaker(other, 1)))))
    assert after(fact, state).breakers.keys() == {other}


def test_every_reset_is_tested() -> None:
    assert RESETS.keys() == {type(fact) for fact, _ in RESETTING}


@pytest.mark.parametrize(
    ("fact", "key"),
    [
        (facts.ResolveFailed("reg/ci:1", "no"), BreakerKey(Scope.REFERENCE, "reg/ci:1")),
        (facts.PullFailed(IMAGE, "reg/ci:1", "no"), BreakerKey(Scope.IMAGE, IMAGE)),
        (facts.EvictionFailed(IMAGE, "no"), BreakerKey(Scope.IMAGE, IMAGE)),
        (facts.TeardownFailed("ready", "no"), BreakerKey(Scope.VM, "ready")),
        (facts.StrayRemovalFailed("stray", "no"), BreakerKey(Scope.VM, "stray")),
        (facts.TemplateSaveFailed("t", "ready", "no"), BreakerKey(Scope.TEMPLATE, "t")),
        (facts.TemplateDropFailed("t", "no"), BreakerKey(Scope.TEMPLATE, "t")),
        (facts.TemplateStartFailed("ready", "t", "no"), BreakerKey(Scope.TEMPLATE, "t")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_failure_opens_its_breaker(fact: Fact, key: BreakerKey) -> None:
    assert after(fact).breakers[key].open_until_s == NOW_S + 5


@pytest.mark.parametrize("text", ["x" * 5_000_000, "\ud800" * 2000], ids=["huge", "surrogates"])
@pytest.mark.parametrize(
    "fact",
    [
        lambda text: facts.ProbeFailed("ready", Cause.PROBE_FAILED, text),
        lambda text: facts.ProbeFailed("leased", Cause.PROBE_FAILED, text),
        lambda text: facts.ProcessExited("ready", 1, text),
        lambda text: facts.TemplateStartFailed("ready", "t", text),
        lambda text: facts.TeardownFailed("ready", text),
        lambda text: facts.EvidenceFailed("ready", text),
        lambda text: facts.ResolveFailed("reg/ci:1", text),
        lambda text: facts.PullFailed(IMAGE, "reg/ci:1", text),
        lambda text: facts.EvictionFailed(IMAGE, text),
        facts.AssignmentRefused,
        lambda text: actions.MarkFailed("ready", Failure(Cause.DAMAGED, text, NOW_S)),
        lambda text: actions.DestroyVm("ready", text),
    ],
)
def test_long_reasons_are_stored_cut(fact: Callable[[str], Any], text: str) -> None:
    """A guest, a tool or a registry cannot fill the journal by the length of one message."""
    changes = record(STATE, fact(text), NOW_S, 1.0)
    stored = [TABLES[type(change.record)].adapter.dump_json(change.record) for change in changes.records]  # type: ignore[union-attr]
    stored += [EVENT.dump_json(event) for event in changes.events]
    assert changes.events
    assert max(map(len, stored)) < 3 * DETAIL_LIMIT_BYTES
