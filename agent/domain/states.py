"""The states of a VM, and the table of events that move it between them.

`creating → starting → ready → leased → stopping → gone`, and `ready → suspending → standby → resuming → ready`. A VM in
any of these states but the last two can fail, and a failed VM is only torn down: VMs are never repaired. A pair of
state and event that is not in `TRANSITIONS` is a defect."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class VmState(StrEnum):
    """The state of a VM, from its creation to its teardown."""

    CREATING = "creating"  # recorded; the clone may be incomplete
    STARTING = "starting"  # cloned; boots until it passes its startup probes
    READY = "ready"  # passed its startup probes, not leased
    LEASED = "leased"  # claimed by one lease
    SUSPENDING = "suspending"  # its snapshot is being saved
    STANDBY = "standby"  # suspended after it was ready: holds no slot
    RESUMING = "resuming"  # resumes from its snapshot until it passes its startup probes again
    FAILED = "failed"  # failed, waits for its teardown
    STOPPING = "stopping"  # its teardown is recorded; stays until it is confirmed gone
    GONE = "gone"  # confirmed: no process, no files, no record


class VmEvent(StrEnum):
    """What moves a VM from one state to another."""

    CLONED = "cloned"
    PROBES_PASSED = "probes-passed"
    LEASE = "lease"
    SUSPEND = "suspend"
    SUSPENDED = "suspended"
    RESUME = "resume"
    FAIL = "fail"
    TEARDOWN = "teardown"
    CONFIRMED_GONE = "confirmed-gone"


TRANSITIONS: Final[dict[tuple[VmState, VmEvent], VmState]] = {
    (VmState.CREATING, VmEvent.CLONED): VmState.STARTING,
    (VmState.CREATING, VmEvent.FAIL): VmState.FAILED,
    (VmState.CREATING, VmEvent.TEARDOWN): VmState.STOPPING,
    (VmState.STARTING, VmEvent.PROBES_PASSED): VmState.READY,
    (VmState.STARTING, VmEvent.FAIL): VmState.FAILED,
    (VmState.STARTING, VmEvent.TEARDOWN): VmState.STOPPING,
    (VmState.READY, VmEvent.LEASE): VmState.LEASED,
    (VmState.READY, VmEvent.FAIL): VmState.FAILED,
    (VmState.READY, VmEvent.TEARDOWN): VmState.STOPPING,
    (VmState.READY, VmEvent.SUSPEND): VmState.SUSPENDING,
    (VmState.SUSPENDING, VmEvent.SUSPENDED): VmState.STANDBY,
    (VmState.SUSPENDING, VmEvent.FAIL): VmState.FAILED,
    (VmState.SUSPENDING, VmEvent.TEARDOWN): VmState.STOPPING,
    (VmState.STANDBY, VmEvent.RESUME): VmState.RESUMING,
    (VmState.STANDBY, VmEvent.FAIL): VmState.FAILED,
    (VmState.STANDBY, VmEvent.TEARDOWN): VmState.STOPPING,
    (VmState.RESUMING, VmEvent.PROBES_PASSED): VmState.READY,
    (VmState.RESUMING, VmEvent.FAIL): VmState.FAILED,
    (VmState.RESUMING, VmEvent.TEARDOWN): VmState.STOPPING,
    (VmState.LEASED, VmEvent.FAIL): VmState.FAILED,
    (VmState.LEASED, VmEvent.TEARDOWN): VmState.STOPPING,
    (VmState.FAILED, VmEvent.TEARDOWN): VmState.STOPPING,
    (VmState.STOPPING, VmEvent.TEARDOWN): VmState.STOPPING,
    (VmState.STOPPING, VmEvent.CONFIRMED_GONE): VmState.GONE,
}

ALIVE: Final = frozenset(VmState) - {VmState.FAILED, VmState.STOPPING, VmState.GONE}
"""States of a VM that serves or is about to serve."""

AWAITS_PROBES: Final = frozenset({VmState.STARTING, VmState.RESUMING})
"""States in which the startup probes run until they pass or their deadline ends."""

RUNNING: Final = AWAITS_PROBES | {VmState.READY, VmState.LEASED}
"""States of a VM whose process must run."""

ENDING: Final = frozenset({VmState.FAILED, VmState.STOPPING})
HOLDS_SLOT: Final = frozenset(VmState) - {VmState.STANDBY, VmState.GONE}
"""States that hold a slot, memory and processors: all but standby, until the VM is confirmed gone."""


class IllegalTransition(Exception):
    """An event that the table does not permit in a state: a defect of the caller, never invalid input."""


def advance(state: VmState, event: VmEvent) -> VmState:
    """Return the state after `event`. Raises `IllegalTransition` for a pair that is not in the table."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f"a VM that is {state} cannot take the event {event}") from None
