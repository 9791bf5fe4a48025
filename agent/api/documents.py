"""Conversion of the world to the documents of the API. No I/O; every figure is derived."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import quote

from agent.api import operator_schemas, schemas
from agent.domain import capacity
from agent.domain.breaker import Scope
from agent.domain.plan import HEARTBEAT_LIMIT_S
from agent.domain.states import VmState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from agent.api.auth import Caller
    from agent.api.engine_protocols import EngineParts
    from agent.domain.breaker import Breaker
    from agent.domain.events import Event
    from agent.domain.health import ProbeResult
    from agent.domain.model import Condition, Failure, HostMode, Image, Lease, PoolSpec, Vm
    from agent.domain.rollout import Rollout
    from agent.domain.world import World
    from agent.engine.evidence import EvidenceFile
    from agent.host.disk_space import DiskUsage
    from agent.hypervisors.contract import Address, ExecResult
    from agent.images.contract import PullProgress

COUNTED_STATES: Final[Mapping[VmState, str]] = {
    VmState.CREATING: "starting",
    VmState.STARTING: "starting",
    VmState.READY: "ready",
    VmState.LEASED: "leased",
    VmState.SUSPENDING: "stopping",
    VmState.STANDBY: "standby",
    VmState.RESUMING: "starting",
    VmState.FAILED: "stopping",
    VmState.STOPPING: "stopping",
}
"""The counted states of VMs. A VM in standby holds no slot."""


PART_OF_CONDITION: Final[Mapping[str, Literal["vms", "images", "disk"]]] = {
    "HypervisorResponding": "vms",
    "ImageStoreReadable": "images",
    "DiskMeasured": "disk",
}
"""The conditions of failed observations, with the part of the document that is then outdated."""

DISK_STEP_BYTES: Final = 64 << 20
"""The step to which free space is rounded."""


def when(at_s: float | None) -> datetime | None:
    """Return seconds since the epoch as a time; None for 0."""
    return datetime.fromtimestamp(at_s, UTC) if at_s else None


def _at(at_s: float) -> datetime:
    return datetime.fromtimestamp(at_s, UTC)


def host_document(engine: EngineParts) -> schemas.HostDocument:
    """Return everything a scheduler needs to know of this host."""
    world, identity, held = engine.host.world(), engine.host.identity, engine.assignments.held
    used, free = capacity.used(world), capacity.free(world)
    return schemas.HostDocument(
        sequence=engine.host.sequence,
        host=schemas.Identity(
            name=identity.name,
            machine_id=identity.machine_id,
            boot_id=identity.boot_id,
            os=identity.os,
            arch=identity.arch,
            model=identity.hardware.model,
            chip=identity.hardware.chip,
            serial=identity.hardware.serial,
            hardware_uuid=identity.hardware.uuid,
        ),
        cores=schemas.Cores(
            performance=identity.hardware.performance_cores, efficiency=identity.hardware.efficiency_cores
        ),
        vitals=schemas.Vitals(
            memory_pressure=engine.host.vitals().memory_pressure,
            heat=engine.host.vitals().heat,
            purgeable_disk_bytes=engine.host.vitals().purgeable_bytes,
        ),
        versions=schemas.Versions(
            agent=identity.agent_version,
            hypervisor=identity.hypervisor,
            hypervisor_version=identity.hypervisor_version,
        ),
        mode=mode_document(world.mode),
        draining=world.is_draining,
        slots=slots(world),
        cpus=_amounts(identity.cpus, world.limits.cpus, used.cpus, free.cpus),
        memory_mib=_amounts(identity.memory_mib, world.limits.memory_mib, used.memory_mib, free.memory_mib),
        disk_bytes=_disk(engine.host.disk()),
        pools=tuple(pool_status(pool, world) for pool in world.pools),
        images=image_list(world, engine.host.pulls()).images,
        conditions=tuple(_condition(condition) for condition in engine.host.conditions()),
        assignment=schemas.AssignmentStatus(source=held.source, etag=held.etag, error=held.error),
        stale=_stale(engine),
    )


def _stale(engine: EngineParts) -> tuple[schemas.Staleness, ...]:
    """Return the outdated parts: those with failed observations, or all if no reconcile pass ran recently."""
    stale = tuple(
        schemas.Staleness(
            part=PART_OF_CONDITION[found.type], since=when(found.since_s), reason=found.message or found.reason
        )
        for found in engine.host.conditions()
        if found.problem and found.type in PART_OF_CONDITION
    )
    if engine.health.heartbeat_age_s() < HEARTBEAT_LIMIT_S:
        return stale
    reason = f"the agent's reconciler has not run for {HEARTBEAT_LIMIT_S:g} s"
    return (*stale, schemas.Staleness(part="everything", since=None, reason=reason))


def slots(world: World) -> schemas.Slots:
    """Return the slots of the host by use."""
    held = Counter(COUNTED_STATES[vm.state] for vm in world.vms if vm.holds_slot)
    return schemas.Slots(
        total=world.limits.slots,
        used=capacity.used(world).slots,
        starting=held["starting"],
        ready=held["ready"],
        leased=held["leased"],
        stopping=held["stopping"],
        foreign=world.foreign_slots,
        free=capacity.free(world).slots,
    )


def pool_status(pool: PoolSpec, world: World) -> schemas.PoolStatus:
    """Return the targets and VMs of a pool."""
    held = Counter(COUNTED_STATES[vm.state] for vm in world.vms if vm.pool == pool.name)
    rollout, resolution = world.rollouts.get(pool.name), world.resolutions.get(pool.image)
    count, limit = capacity.startable(world, pool)
    return schemas.PoolStatus(
        name=pool.name,
        image=pool.image,
        warm=pool.warm,
        max=pool.max,
        ready=held["ready"],
        leased=held["leased"],
        starting=held["starting"],
        stopping=held["stopping"],
        standby=held["standby"],
        waiting=sum(request.pool == pool.name for request in world.requests),
        startable=schemas.Startable(count=count, limit=limit),
        rollout=_rollout(rollout) if rollout else None,
        error=resolution.error if resolution else "",
    )


def image_list(world: World, pulls: tuple[PullProgress, ...]) -> schemas.ImageList:
    """Return the image versions that are present, being pulled, or failed."""
    here = {image.digest: image for image in world.images}
    coming = {pull.digest: pull for pull in pulls}
    failed = {
        key.name: breaker for key, breaker in world.breakers.items() if key.scope is Scope.IMAGE and breaker.failures
    }
    digests = sorted(here.keys() | coming.keys() | failed.keys())
    return schemas.ImageList(
        images=tuple(
            _image(digest, world, here.get(digest), coming.get(digest), failed.get(digest)) for digest in digests
        )
    )


def vm_status(vm: Vm, world: World, caller: Caller) -> schemas.VmStatus:
    """Return one VM for a list, with the id of its lease if the caller may see it."""
    lease = next((lease for lease in world.leases if lease.vm == vm.name), None)
    return schemas.VmStatus(
        name=vm.name,
        pool=vm.pool,
        image=vm.image,
        state=vm.state,
        since=_at(vm.since_s),
        created_at=_at(vm.created_at_s),
        ready_at=when(vm.ready_at_s),
        cpus=vm.size.cpus,
        memory_mib=vm.size.memory_mib,
        lease=_lease_brief(lease, caller) if lease else None,
        failure=_failure(vm.failure),
    )


def _lease_brief(lease: Lease, caller: Caller) -> schemas.LeaseBrief:
    lease_id = lease.id if caller.can_see_lease(lease.owner) else None
    return schemas.LeaseBrief(id=lease_id, holder=lease.holder, expires_at=_at(lease.expires_at_s))


def vm_detail(
    vm: Vm, world: World, caller: Caller, *, address: Address | None, probes: tuple[ProbeResult, ...]
) -> schemas.VmDetail:
    """Return one VM with its address and probe results."""
    return schemas.VmDetail(
        **dict(vm_status(vm, world, caller)),
        address=address_document(address),
        probes=tuple(
            schemas.ProbeResultDocument(
                probe=probe.probe,
                outcome=probe.outcome,
                detail=probe.detail,
                at=_at(probe.at_s),
                duration_s=max(0.0, probe.duration_s),
            )
            for probe in probes
        ),
    )


def _failure(failure: Failure | None) -> schemas.FailureDocument | None:
    return (
        schemas.FailureDocument(cause=failure.cause, reason=failure.reason, at=_at(failure.at_s)) if failure else None
    )


def lease_document(lease: Lease, address: Address | None, vm: Vm | None) -> schemas.LeaseDocument:
    """Return a lease with the address of its VM, and the VM's failure if it is unhealthy."""
    return schemas.LeaseDocument(
        id=lease.id,
        pool=lease.pool,
        vm=lease.vm,
        holder=lease.holder,
        ttl_s=lease.ttl_s,
        created_at=_at(lease.created_at_s),
        expires_at=_at(lease.expires_at_s),
        address=address_document(address),
        unhealthy=_failure(vm.reported_failure) if vm else None,
    )


def exec_document(result: ExecResult) -> schemas.ExecDocument:
    """Return the end of a command in a guest."""
    return schemas.ExecDocument(
        exit_code=result.exit_code,
        stdout=b64encode(result.stdout).decode(),
        stderr=b64encode(result.stderr).decode(),
        truncated=result.truncated,
    )


def address_document(address: Address | None) -> schemas.AddressDocument | None:
    """Return an address."""
    return schemas.AddressDocument(host=address.host, ports=dict(address.ports)) if address else None


def event_document(number: int, event: Event) -> schemas.EventDocument:
    """Return an event."""
    return schemas.EventDocument(
        number=number,
        kind=event.kind,
        at=_at(event.at_s),
        vm=event.vm,
        pool=event.pool,
        image=event.image,
        lease=event.lease,
        cause=event.cause,
        detail=event.detail,
        duration_s=event.duration_s,
    )


def mode_document(mode: HostMode) -> schemas.ModeDocument:
    """Return the host's mode."""
    return schemas.ModeDocument(mode=mode.mode, since=when(mode.since_s), reason=mode.reason)


def rollout_document(rollout: Rollout) -> operator_schemas.PoolRollout:
    """Return the rollout of one pool."""
    return operator_schemas.PoolRollout(pool=rollout.pool, **dict(_rollout(rollout)))


def evidence_list(vm: str, root: Path, files: Iterable[EvidenceFile]) -> operator_schemas.EvidenceList:
    """Return the evidence of a VM."""
    return operator_schemas.EvidenceList(
        vm=vm,
        directory=str(root / vm),
        files=tuple(
            operator_schemas.EvidenceDocument(
                name=file.name,
                size_bytes=file.size_bytes,
                modified=_at(file.modified_at_s),
                path=f"/v1/vms/{vm}/evidence/{quote(file.name)}",
            )
            for file in files
        ),
    )


def _amounts(total: float, allocatable: float, used: float, free: float) -> schemas.Amounts:
    return schemas.Amounts(
        total=total, reserved=max(0, total - allocatable), allocatable=allocatable, used=used, free=free
    )


def _disk(disk: DiskUsage) -> schemas.Amounts:
    """Return the free space in whole steps, rounded down: otherwise each log line would change the document of every
    poller."""
    free_bytes = disk.free_bytes // DISK_STEP_BYTES * DISK_STEP_BYTES
    return schemas.Amounts(
        total=disk.total_bytes,
        reserved=disk.reserve_bytes,
        allocatable=max(0, disk.total_bytes - disk.reserve_bytes),
        used=max(0, disk.total_bytes - free_bytes),
        free=max(0, free_bytes - disk.reserve_bytes),
    )


def _rollout(rollout: Rollout) -> schemas.RolloutStatus:
    return schemas.RolloutStatus(
        phase=rollout.phase,
        serving=rollout.serving,
        target=rollout.target,
        previous=rollout.previous,
        soak_until=when(rollout.soak_until_s),
        failures=rollout.failures,
        quarantined=rollout.quarantined,
        since=when(rollout.since_s),
        reason=rollout.reason,
    )


def _condition(condition: Condition) -> schemas.ConditionDocument:
    return schemas.ConditionDocument(
        type=condition.type,
        status=condition.status,
        problem=condition.problem,
        reason=condition.reason,
        message=condition.message,
        since=when(condition.since_s),
    )


def _image(
    digest: str, world: World, image: Image | None, pull: PullProgress | None, breaker: Breaker | None
) -> schemas.ImageStatus:
    references = set(image.references if image else ()) | ({pull.reference} if pull else set())
    users = (name for name, rollout in world.rollouts.items() if digest in (rollout.serving, rollout.target))
    return schemas.ImageStatus(
        digest=digest,
        state="present" if image else "pulling" if pull else "failed",
        references=tuple(sorted(references)),
        pools=tuple(sorted(users)),
        disk_bytes=image.disk_bytes if image else 0,
        allocated_bytes=image.allocated_bytes if image else 0,
        last_used_at=when(image.last_used_at_s) if image else None,
        progress=_progress(pull) if pull else None,
        error=breaker.reason if breaker else "",
        retry_at=when(breaker.open_until_s) if breaker else None,
    )


def _progress(pull: PullProgress) -> schemas.Progress:
    return schemas.Progress(
        total_bytes=pull.total_bytes,
        done_bytes=pull.done_bytes,
        fetched_bytes=pull.fetched_bytes,
        rate_bytes_per_s=max(0.0, pull.rate_bytes_per_s),
        eta_s=pull.eta_s,
    )
