"""The state of a simulated VM: its files, its snapshot, its process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.domain.model import VmSize
    from agent.hypervisors.contract import VmSpec
    from agent.hypervisors.simulated.behaviour import Behaviour
    from agent.hypervisors.simulated.guest import GuestState, SimulatedGuest


@dataclass(frozen=True, slots=True)
class SimulatedTemplate:
    """A saved guest, and which VMs can start from it."""

    image: str
    size: VmSize
    snapshot: GuestState


@dataclass(slots=True)
class SimulatedProcess:
    """One run of a VM, from its start to its end."""

    pid: int
    guest: SimulatedGuest
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    scheduled: list[asyncio.Task[None]] = field(default_factory=list)  # what will happen to it: boot, hang, crash


@dataclass(slots=True)
class SimulatedVm:
    """A VM on a simulated host. It runs while it has a process."""

    spec: VmSpec
    image: str
    behaviour: Behaviour
    is_complete: bool = False
    snapshot: GuestState | None = None  # while it is suspended
    template: str | None = None  # the template it was cloned from
    is_identity_pending: bool = False  # cloned from a template, and not started yet
    process: SimulatedProcess | None = None
    console: list[str] = field(default_factory=list)
