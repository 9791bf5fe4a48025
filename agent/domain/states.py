"""The life of a VM as a table: which event moves which state where.

`creating → starting → ready → leased → stopping → gone`, and `ready → suspending → standby → resuming → ready`; any
living state can fail, and a failed VM is only ever stopped: VMs are never repaired. Every pair of state and event is
decided, either here or by being illegal.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class VmState(StrEnum):
    """Where a VM is in its one life."""

    CREATING = "creating"  # the row is durable, the clone may be partial
    STARTING = "starting"  # cloned; booting, not yet proven by its startup probes
    READY = "ready"  # proven healthy, not leased: warm
    LEASED = "leased"  # claimed by exactly one lease
    SUSPENDING = "suspending"  # its memory is being saved
    STANDBY = "standby"  # proven, then suspended: holds no slot
    RESUMING = "resuming"  # starting from its saved memory, not yet proven anew
    FAILED = "failed"  # known bad, waits for teardown
    STOPPING = "stopping"  # teardown intended; stays until proven gone
    GONE = "gone"  # proven: no process, no files, no row


class VmEvent(StrEnum):
    """What can happen to a VM."""

    CLONED = "cloned"
    PROVEN = "proven"
    LEASE = "lease"
    SUSPEND = "suspend"
    SUSPENDED = "suspended"
    RESUME = "resume"
    FAIL = "fail"
    TEARDOWN = "teardown"
    PROVEN_GONE = "proven-gone"


TRANSITIONS: Final[dict[tuple[VmState, VmEvent], VmState]] = {
    (VmState.CREATING, VmEvent.CLONED): VmState.STARTING,
    (VmState.CREATING, VmEvent.FAIL): VmState.FAILED,
    (VmState.CREATING, VmEvent.TEARDOWN): VmState.STOPPING,
    (VmState.STARTING, VmEvent.PROVEN): VmState.READY,
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
    (VmState.RESUMING, VmEvent.PROVEN): VmState.READY,
    (VmState.RESUMING, VmEvent.FAIL): VmState.FAILED,
    (VmState.RESUMING, VmEvent.TEARDOWN): VmState.STOPPING,
    (VmState.LEASED, VmEvent.FAIL): VmState.FAILED,
    (VmState.LEASED, VmEvent.TEARDOWN): VmState.STOPPING,
    (VmState.FAILED, VmEvent.TEARDOWN): VmState.STOPPING,
    (VmState.STOPPING, VmEvent.TEARDOWN): VmState.STOPPING,
    (VmState.STOPPING, VmEvent.PROVEN_GONE): VmState.GONE,
}

ALIVE: Final = frozenset(VmState) - {VmState.FAILED, VmState.STOPPING, VmState.GONE}
"""States of a VM that serves or will serve."""

UNPROVEN: Final = frozenset({VmState.STARTING, VmState.RESUMING})
"""States in which the guest is asked until it is healthy, or out of time."""

RUNNING: Final = UNPROVEN | {VmState.READY, VmState.LEASED}
"""States of a VM whose process must run."""

HOLDS_SLOT: Final = frozenset(VmState) - {VmState.STANDBY, VmState.GONE}
"""States that hold a slot, memory and processors: all but standby until the VM is proven gone."""


class IllegalTransition(Exception):
    """An event reached a VM in a state where it means nothing: a bug in the caller, never bad input."""


def advance(state: VmState, event: VmEvent) -> VmState:
    """Return the state after `event`. Raises `IllegalTransition` for a pair the table does not hold."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f"a VM that is {state} cannot take the event {event}") from None
