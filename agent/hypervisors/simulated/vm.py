"""One simulated VM: the state that a process, its files and its guest would have."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.domain.model import VmSize
    from agent.hypervisors.contract import VmSpec
    from agent.hypervisors.simulated.behaviour import Behaviour
    from agent.hypervisors.simulated.guest import Guest


@dataclass(slots=True)
class Memory:
    """What a guest knows, and still knows after a suspension."""

    hostname: str
    files: set[str]

    def copy(self) -> Memory:
        """Return a memory of its own for another guest."""
        return Memory(self.hostname, set(self.files))


@dataclass(frozen=True, slots=True)
class Template:
    """A kept memory, and which VMs it fits."""

    image: str
    size: VmSize
    memory: Memory


@dataclass(slots=True)
class Life:
    """One run of a VM, from its start to its end: what a process is to a real one."""

    pid: int
    guest: Guest
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    fates: list[asyncio.Task[None]] = field(default_factory=list)  # what will happen to it by itself


@dataclass(slots=True)
class SimulatedVm:
    """A VM on a simulated host. It runs while it has a life."""

    spec: VmSpec
    image: str
    behaviour: Behaviour
    whole: bool = False
    memory: Memory | None = None  # saved, while it is suspended
    template: str | None = None  # that it was cloned from
    twin: bool = False  # it has not become itself yet
    life: Life | None = None
    console: list[str] = field(default_factory=list)
