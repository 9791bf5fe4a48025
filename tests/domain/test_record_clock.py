"""Steps of the host's clock: moments move, durations stay."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain.breaker import CAP_S, Breaker, BreakerKey, Scope
from agent.domain.events import EventKind
from agent.domain.facts import ClockStepped
from agent.domain.model import Cause, ClockAnchor, Failure, HostMode, Lease, Mode, Resolution, Vm, VmSize
from agent.domain.record import record
from agent.domain.record_clock import is_moment, missed_step_s, move_moments
from agent.domain.rollout import Phase, Rollout
from agent.domain.states import VmState
from agent.domain.stored_state import KEYS, Put, StoredState, key_of

VM = Vm(
    "v", "ci", "sha256:a", VmState.LEASED, VmSize(), 900.0, 950.0, ready_at_s=940.0, lease_id="l",
    failure=Failure(Cause.EXITED, "", 960.0), stop_grace_s=10.0, reported_failure=Failure(Cause.LOST, "", 955.0),
)  # fmt: skip
LEASE = Lease("l", "ci", "v", "job", 3600.0, 950.0, 4550.0, max_ttl_s=86400.0)
ANCHOR = ClockAnchor(1000.0, 50.0, "boot")


def test_every_field_in_seconds_is_a_moment_or_a_duration() -> None:
    """A new field must be decided: one that is moved by mistake, or not moved, ends leases early or never."""
    names = {item.name for kind in (*KEYS, Failure) for item in fields(kind) if item.name.endswith("_s")}
    assert {name for name in names if is_moment(name)} == {
        "at_s", "created_at_s", "since_s", "ready_at_s", "expires_at_s", "short_since_s", "soak_until_s",
        "promoted_at_s", "last_failure_at_s", "open_until_s",
    }  # fmt: skip
    assert {name for name in names if not is_moment(name)} == {
        "ttl_s", "max_ttl_s", "stop_grace_s", "now_s", "elapsed_s",
    }  # fmt: skip


@pytest.mark.parametrize("delta_s", [86400.0, -86400.0 * 400, 1.8e9])
def test_vm_and_lease_move_with_the_clock(delta_s: float) -> None:
    moved = move_moments(VM, delta_s)
    assert (moved.created_at_s, moved.since_s, moved.ready_at_s) == (900 + delta_s, 950 + delta_s, 940 + delta_s)
    assert moved.failure is not None
    assert moved.reported_failure is not None
    assert (moved.failure.at_s, moved.reported_failure.at_s) == (960 + delta_s, 955 + delta_s)
    assert (moved.stop_grace_s, moved.size, moved.name) == (VM.stop_grace_s, VM.size, VM.name)
    lease = move_moments(LEASE, delta_s)
    assert (lease.expires_at_s - lease.created_at_s, lease.ttl_s) == (3600, 3600)
    assert lease.expires_at_s == 4550 + delta_s


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=5))
def test_steps_never_change_the_rest_of_a_lease(steps: list[float]) -> None:
    now_s, lease = 1000.0, LEASE
    for delta_s in steps:
        now_s, lease = now_s + delta_s, move_moments(lease, delta_s)
    assert lease.expires_at_s - now_s == pytest.approx(LEASE.expires_at_s - 1000.0, abs=1e-3)


def test_step_moves_all_records_in_one_change() -> None:
    records: list[Any] = [
        VM, LEASE, Rollout("ci", "a", "b", Phase.CANARY, 900.0, soak_until_s=1050.0),
        Breaker(BreakerKey(Scope.IMAGE, "a"), 3, 1100.0, 990.0, "no"), Resolution("reg/ci:1", "a", 980.0),
        HostMode(Mode.CORDONED, 970.0),
    ]  # fmt: skip
    state = StoredState({type(one): {key_of(one): one} for one in records})
    after = ClockAnchor(1500.0, 60.0, "boot")
    changes = record(state, ClockStepped(500.0, after), 1000.0, 0.5)
    put = [change.record for change in changes.records if isinstance(change, Put)]
    assert put == [move_moments(one, 500.0) for one in records] + [after]
    assert [event.kind for event in changes.events] == [EventKind.CLOCK_STEPPED]
    assert state.apply(changes).clock_anchor == after


@pytest.mark.parametrize(
    ("anchor", "current", "missed_s"),
    [
        (ANCHOR, ClockAnchor(1100.0, 150.0, "boot"), 0.0),
        (ANCHOR, ClockAnchor(11_900.0, 150.0, "boot"), 10_800.0),
        (ANCHOR, ClockAnchor(1100.0, 5.0, "another boot"), 0.0),
        (ClockAnchor(1000.0, 50.0, ""), ClockAnchor(9000.0, 60.0, ""), 0.0),
        (None, ClockAnchor(9000.0, 60.0, "boot"), 0.0),
    ],
)
def test_missed_step_is_known_within_one_boot(
    anchor: ClockAnchor | None, current: ClockAnchor, missed_s: float
) -> None:
    assert missed_step_s(anchor, current) == missed_s


def test_breaker_of_a_clock_that_was_ahead_is_closed() -> None:
    key = BreakerKey(Scope.REFERENCE, "reg/ci:1")
    assert Breaker(key, 3, 1000.0 + CAP_S, 990.0).is_open(1000.0)
    ahead = Breaker(key, 3, 1000.0 + CAP_S + 1, 5000.0)
    assert not ahead.is_open(1000.0)
    assert not ahead.failed_recently(1000.0)
