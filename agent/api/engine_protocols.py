"""What the API asks of the engine: the seam between HTTP and the loop.

`agent.engine` provides the real thing; nothing in `agent.api` reaches past these protocols.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from agent.domain.model import Check
from agent.engine.assignments import HeldAssignment
from agent.host.disk_space import DiskUsage
from agent.host.host_info import HostIdentity

if TYPE_CHECKING:
    from pathlib import Path

    from agent.config import Assignment
    from agent.domain.events import Event
    from agent.domain.health import ProbeResult
    from agent.domain.model import Condition, HostMode, Lease, Mode
    from agent.domain.rollout import Rollout
    from agent.domain.world import World
    from agent.engine.evidence import EvidenceFile
    from agent.host.vitals import Vitals
    from agent.hypervisors.contract import Address, ExecResult
    from agent.hypervisors.sessions import ExecSession
    from agent.images.contract import PullProgress


__all__ = [
    "Check",
    "DiskUsage",
    "Engine",
    "Evidence",
    "HeldAssignment",
    "History",
    "HostIdentity",
    "Leases",
    "OperatorCommands",
]


class Leases(Protocol):
    """The desk that hands out VMs. Errors are `HearthError`s with the codes named in `agent.engine.leases`."""

    async def acquire(
        self, pool: str, *, holder: str, ttl_s: float | None, wait_s: float, idempotency_key: str | None
    ) -> Lease:
        """Claim a ready VM, durable before it returns; waits at most `wait_s` for one to turn ready."""

    async def renew(self, lease_id: str, *, ttl_s: float | None) -> Lease:
        """Let a lease live on for its ttl from now."""

    async def release(self, lease_id: str) -> None:
        """End a lease: its VM is torn down, the pool refilled. Raises as `get` does."""

    async def get(self, lease_id: str) -> Lease:
        """Return a lease that lives. Raises `LeaseEndedError` for one that is over, else `LeaseNotFoundError`."""


class History(Protocol):
    """What happened, by number. Numbers grow by one and survive restarts of the agent."""

    async def events(self, *, after: int, vm: str | None = None, limit: int = 500) -> list[tuple[int, Event]]:
        """Return at most `limit` events in order with their numbers: those after `after`, of one VM if named."""

    async def last(self) -> int:
        """Return the number of the latest event; 0 when nothing ever happened."""

    async def changed(self, sequence: int) -> None:
        """Return as soon as the world is no longer at `sequence`."""


class Evidence(Protocol):
    """What explains failed VMs. Errors are those of `agent.engine.evidence`."""

    @property
    def root(self) -> Path:
        """The folder with one folder for each VM."""

    async def files(self, vm: str) -> tuple[EvidenceFile, ...]:
        """Return the files kept of a VM, by name. Raises `EvidenceUnknownError` when there are none."""

    async def path(self, vm: str, name: str) -> Path:
        """Return where one file of a VM lies. Raises `EvidenceUnknownError`."""


class OperatorCommands(Protocol):
    """What an operator does to this host. Durable before it returns."""

    async def set_mode(self, mode: Mode, *, reason: str) -> HostMode:
        """Open, cordon or drain the host."""

    async def retry_rollout(self, pool: str) -> Rollout:
        """Try the target of a pool again at once. Raises `PoolUnknownError`, `NothingToRetryError`."""

    async def undo_rollout(self, pool: str, *, reason: str) -> Rollout:
        """Go back to the version before. Raises `PoolUnknownError`, `NothingToUndoError`."""


class Engine(Protocol):
    """The running agent, as HTTP sees it."""

    @property
    def leases(self) -> Leases:
        """The lease desk."""

    @property
    def history(self) -> History:
        """What happened, and the moment there is more."""

    @property
    def evidence(self) -> Evidence:
        """What explains failed VMs."""

    @property
    def operations(self) -> OperatorCommands:
        """What an operator does to this host."""

    @property
    def sequence(self) -> int:
        """Grows by every change of the world; the version of what `world` returns."""

    def world(self) -> World:
        """Return the world as the engine knows it now. No I/O."""

    def conditions(self) -> tuple[Condition, ...]:
        """Return the host's conditions."""

    def identity(self) -> HostIdentity:
        """Return who this host is."""

    def vitals(self) -> Vitals:
        """Return how the host is, as last measured."""

    def disk(self) -> DiskUsage:
        """Return the data volume's figures as last measured."""

    def probes(self, vm: str) -> tuple[ProbeResult, ...]:
        """Return the latest answer of each probe of a VM."""

    def pulls(self) -> tuple[PullProgress, ...]:
        """Return the pulls under way."""

    async def address(self, vm: str) -> Address:
        """Return where a VM is reached."""

    def heartbeat_age_s(self) -> float:
        """Seconds since the loop last finished a turn."""

    def readiness(self) -> tuple[Check, ...]:
        """Return the named readiness checks."""

    def assignment(self) -> HeldAssignment:
        """Return the assignment in force."""

    async def put_assignment(self, document: Assignment, *, if_match: str | None) -> HeldAssignment:
        """Replace the assignment, durable before it returns. Refused when the source is a file."""

    async def execute(self, vm: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
        """Run a command in a guest. Raises `GuestError` when the guest does not answer in time."""

    async def open_exec(self, vm: str, argv: tuple[str, ...], *, stdin: bool) -> ExecSession:
        """Start a command in a guest, to be followed while it runs. Raises `GuestError` when the guest does not."""

    async def replace_vm(self, name: str, *, reason: str) -> None:
        """Tear a VM down and let the pool refill. Raises `VmUnknownError`, or `VmLeasedError` while it is leased."""
