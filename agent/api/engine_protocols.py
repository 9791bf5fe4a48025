"""The parts of the engine that the API uses, as protocols: `agent.engine` implements them.

Handlers receive `EngineParts` and use nothing else of the engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from agent.config import Assignment
    from agent.domain.events import Event
    from agent.domain.health import ProbeResult
    from agent.domain.model import Check, Condition, HostMode, Lease, Mode
    from agent.domain.rollout import Rollout
    from agent.domain.world import World
    from agent.engine.assignments import HeldAssignment
    from agent.engine.evidence import EvidenceFile
    from agent.host.disk_space import DiskUsage
    from agent.host.host_info import HostIdentity
    from agent.host.vitals import Vitals
    from agent.hypervisors.contract import Address, ExecResult
    from agent.hypervisors.sessions import ExecSession
    from agent.images.contract import PullProgress


class Leases(Protocol):
    """Grants, renews and ends leases. Errors are `HearthError`s with the codes of `agent.engine.leases`."""

    async def acquire(
        self,
        pool: str,
        *,
        holder: str,
        ttl_s: float | None,
        wait_s: float,
        idempotency_key: str | None,
        owner: str = "",
    ) -> Lease:
        """Lease a VM of `pool`; wait at most `wait_s` for one to become ready. The lease is durable."""

    async def renew(self, lease_id: str, *, ttl_s: float | None, user: str | None = None) -> Lease:
        """Extend a lease by `ttl_s` (default: its own) from now. Raises as `get` does."""

    async def release(self, lease_id: str, *, user: str | None = None) -> None:
        """End a lease: its VM is torn down, the pool refilled. Raises as `get` does."""

    async def get(self, lease_id: str, *, user: str | None = None) -> Lease:
        """Return a living lease that `user` may use; None may use all. Raises `LeaseEndedError`, or
        `LeaseNotFoundError` if it is unknown to this user."""


class History(Protocol):
    """Events by sequence number. The numbers increase by one and survive restarts."""

    async def events(self, *, after: int, vm: str | None = None, limit: int = 500) -> list[tuple[int, Event]]:
        """Return at most `limit` events with their numbers, in order: those after `after`, of one VM if named."""

    async def last(self) -> int:
        """Return the number of the latest event; 0 if there is none."""

    async def changed(self, sequence: int) -> None:
        """Return as soon as the store's sequence number differs from `sequence`."""


class Evidence(Protocol):
    """Evidence of failed VMs. Errors are those of `agent.engine.evidence`."""

    @property
    def root(self) -> Path:
        """The folder with one folder for each VM."""

    async def files(self, vm: str) -> tuple[EvidenceFile, ...]:
        """Return the stored files of a VM, by name. Raises `EvidenceUnknownError` if there are none."""

    async def path(self, vm: str, name: str) -> Path:
        """Return the path of one file of a VM. Raises `EvidenceUnknownError`."""


class OperatorCommands(Protocol):
    """Commands of operators. Each is durable before it returns."""

    async def set_mode(self, mode: Mode, *, reason: str) -> HostMode:
        """Open, cordon or drain the host."""

    async def retry_rollout(self, pool: str) -> Rollout:
        """Start another trial of a pool's target. Raises `PoolUnknownError`, `NothingToRetryError`."""

    async def undo_rollout(self, pool: str, *, reason: str) -> Rollout:
        """Return a pool to the version before its target. Raises `PoolUnknownError`, `NothingToUndoError`."""


class Assignments(Protocol):
    """The assignment in force."""

    @property
    def held(self) -> HeldAssignment:
        """The assignment in force."""

    async def put(self, document: Assignment, *, if_match: str | None) -> HeldAssignment:
        """Replace the assignment, durable before it returns. Raises `AssignmentReadOnlyError`."""


class VmReplacements(Protocol):
    """Replacement of VMs on request."""

    async def replace(self, vm: str, *, reason: str) -> None:
        """Tear a VM down and refill its pool. Raises `VmUnknownError`, and `VmLeasedError` while it is leased."""


class Guests(Protocol):
    """The guests of running VMs."""

    async def address(self, vm: str) -> Address:
        """Return the address of a VM, or raise `HypervisorError` or `TimeoutError` after a few seconds."""

    async def execute(self, vm: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
        """Run a command in a guest. Raises `GuestError` if the guest does not answer in time."""

    async def open_exec(self, vm: str, argv: tuple[str, ...], *, stdin: bool) -> ExecSession:
        """Start a command in a guest and return its session. Raises `GuestError`."""


class Host(Protocol):
    """What the agent knows of its host. No I/O."""

    @property
    def identity(self) -> HostIdentity:
        """Name, hardware and versions of this host."""

    @property
    def sequence(self) -> int:
        """The number of commits: the version of the stored part of the world."""

    def world(self) -> World:
        """Return the world as it is known now."""

    def conditions(self) -> tuple[Condition, ...]:
        """Return the host's conditions."""

    def vitals(self) -> Vitals:
        """Return the host's vital signs as last measured."""

    def disk(self) -> DiskUsage:
        """Return the usage of the data volume as last measured."""

    def probes(self, vm: str) -> tuple[ProbeResult, ...]:
        """Return the latest result of each probe of a VM."""

    def pulls(self) -> tuple[PullProgress, ...]:
        """Return the progress of the running pulls."""


class Health(Protocol):
    """The health of the agent itself."""

    def heartbeat_age_s(self) -> float:
        """Return the seconds since the last reconcile pass ended."""

    def readiness(self) -> tuple[Check, ...]:
        """Return the named readiness checks."""


@dataclass(frozen=True, slots=True)
class EngineParts:
    """The parts of the engine that handlers use."""

    leases: Leases
    history: History
    evidence: Evidence
    operations: OperatorCommands
    assignments: Assignments
    vms: VmReplacements
    guests: Guests
    host: Host
    health: Health
