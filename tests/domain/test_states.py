"""The life of a VM: every pair of state and event is decided, and every life ends."""

from __future__ import annotations

import pytest

from agent.domain.states import ALIVE, HOLDS_SLOT, RUNNING, TRANSITIONS, IllegalTransition, VmEvent, VmState, advance

# State by state what each event does, in the order of `VmEvent`; "." is illegal. A new state or event has to be decided
# here as well, or the test fails.
DECIDED = """
event      cloned   probes-passed lease  suspend    suspended resume   fail   teardown confirmed-gone
creating   starting .      .      .          .         .        failed stopping .
starting   .        ready  .      .          .         .        failed stopping .
ready      .        .      leased suspending .         .        failed stopping .
leased     .        .      .      .          .         .        failed stopping .
suspending .        .      .      .          standby   .        failed stopping .
standby    .        .      .      .          .         resuming failed stopping .
resuming   .        ready  .      .          .         .        failed stopping .
failed     .        .      .      .          .         .        .      stopping .
stopping   .        .      .      .          .         .        .      stopping gone
gone       .        .      .      .          .         .        .      .        .
"""


def decided() -> dict[tuple[VmState, VmEvent], VmState | None]:
    (_, *events), *rows = (line.split() for line in DECIDED.strip().splitlines())
    return {
        (VmState(state), VmEvent(event)): None if after == "." else VmState(after)
        for state, *afters in rows
        for event, after in zip(events, afters, strict=True)
    }


def test_transitions_cover_every_pair_of_state_and_event() -> None:
    pairs = decided()
    assert pairs.keys() == {(state, event) for state in VmState for event in VmEvent}
    assert {pair: after for pair, after in pairs.items() if after is not None} == TRANSITIONS


@pytest.mark.parametrize(("state", "event"), [pair for pair, after in decided().items() if after is None])
def test_illegal_transition_raises(state: VmState, event: VmEvent) -> None:
    with pytest.raises(IllegalTransition, match=f"{state} cannot take the event {event}"):
        advance(state, event)


def test_every_state_is_reachable_and_can_end() -> None:
    after = {state: {to for (of, _), to in TRANSITIONS.items() if of is state} for state in VmState}
    assert _reached(after, VmState.CREATING) == set(VmState)
    assert all(VmState.GONE in _reached(after, state) for state in VmState)


def test_leased_or_failed_vm_is_never_ready_again() -> None:
    after = {state: {to for (of, _), to in TRANSITIONS.items() if of is state} for state in VmState}
    for used in (VmState.LEASED, VmState.FAILED, VmState.STOPPING):
        assert not _reached(after, used) & {VmState.READY, VmState.STANDBY, VmState.STARTING}


def test_state_sets_agree() -> None:
    assert RUNNING < ALIVE < set(VmState)
    assert set(VmState) - HOLDS_SLOT == {VmState.STANDBY, VmState.GONE}


def _reached(after: dict[VmState, set[VmState]], start: VmState) -> set[VmState]:
    reached, new = {start}, {start}
    while new:
        new = set().union(*(after[state] for state in new)) - reached
        reached |= new
    return reached
