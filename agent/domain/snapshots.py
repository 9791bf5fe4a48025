"""The rules for snapshots: standby VMs, and the templates that new VMs are started from.

A standby VM was ready and then suspended to disk: it holds no slot, and a resume is many times faster than a boot. A
template is the saved snapshot of one ready VM from which any number of new VMs start, where the hypervisor can do that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.domain import capacity
from agent.domain.actions import DestroyVm, DropTemplate, SaveTemplate, SuspendVm
from agent.domain.breaker import HOST_KEY, BreakerKey, Scope
from agent.domain.pool_view import can_start, pool_views, shortage
from agent.domain.rollout import Phase
from agent.domain.states import VmState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.domain.model import PoolSpec, VmSize
    from agent.domain.pool_view import PoolView
    from agent.domain.world import World


def template_name(image: str, size: VmSize) -> str:
    """Return the name of the template for VMs of one image version and size: a snapshot fits no other size."""
    return f"{image.replace(':', '-')}-{size.cpus}x{size.memory_mib}"


def template_to_start_from(world: World, pool: PoolSpec, image: str) -> str | None:
    """Return the template that a new VM of `pool` starts from, or None when it must boot."""
    name = template_name(image, pool.size)
    is_usable = pool.use_templates and name in world.templates
    return name if is_usable and not world.is_blocked(BreakerKey(Scope.TEMPLATE, name)) else None


def retire_standby(world: World) -> Iterator[DestroyVm]:
    """Tear down standby VMs of another version, beyond their pool's target, or of a pool that is not assigned."""
    views = {view.spec.name: view for view in pool_views(world)}
    for vm in world.vms:
        if vm.state is not VmState.STANDBY:
            continue
        view = views.get(vm.pool)
        if view is None or world.is_draining:
            yield DestroyVm(vm.name, "its pool does not need it any more")
        elif vm.image != view.rollout.serving:
            yield DestroyVm(vm.name, "another image version serves this pool")
        elif vm in view.standby[view.spec.standby :]:
            yield DestroyVm(vm.name, "the pool has more standby VMs than it wants")


def suspend_spares(world: World) -> Iterator[SuspendVm]:
    """Suspend a spare ready VM of each pool that lacks standby VMs. `fill_pools` creates the spare if a slot is free.

    If no slot is free, a pool with all its VMs ready suspends one of them and has one less until its replacement has
    booted. The replacement is created before a standby VM is resumed in its place, else the two would alternate.
    """
    if not world.can_suspend or world.is_draining or world.disk_full:
        return
    views = pool_views(world)
    is_settled = not any(shortage(view) for view in views) and all(vm.is_alive for vm in world.vms)
    for view in views:
        is_pending = any(vm.replacement_due or vm.state is VmState.SUSPENDING for vm in view.standby)
        if not needs_standby(view) or is_pending:
            continue
        ready = [vm for vm in view.ready if vm.image == view.rollout.serving]
        if len(ready) > view.wanted:
            yield SuspendVm(ready[0].name)
        elif is_settled and _can_spare_warm_vm(world, view):
            yield SuspendVm(ready[0].name, replacement_due=True)
            return  # one at a time: the slot it frees is for its replacement


def needs_standby(view: PoolView) -> bool:
    """Whether a pool that is not in a rollout has fewer standby VMs than its target."""
    return view.rollout.phase is Phase.SERVING and len(view.standby) < view.spec.standby


def save_templates(world: World) -> Iterator[SaveTemplate]:
    """Save the snapshot of one ready VM of every serving version, for the next VMs to start from.

    A VM cannot be leased during the save, so a pool with several warm VMs waits until another one is ready.
    """
    if not world.can_use_templates or world.is_draining or world.disk_full:
        return
    planned: set[str] = set()
    for view in pool_views(world):
        image = view.rollout.serving
        if image is None or not view.spec.use_templates or view.requests:
            continue
        name = template_name(image, view.spec.size)
        booted = [vm for vm in view.ready if vm.image == image and vm.template is None and vm.size == view.spec.size]
        has_others = len(view.ready) >= min(2, view.spec.warm)
        is_missing = name not in world.templates | planned and not world.is_blocked(BreakerKey(Scope.TEMPLATE, name))
        if booted and has_others and is_missing:
            planned.add(name)
            yield SaveTemplate(booted[-1].name, name)


def drop_templates(world: World) -> Iterator[DropTemplate]:
    """Remove the templates of versions and sizes that no pool runs any more."""
    wanted = {
        template_name(image, view.spec.size)
        for view in pool_views(world)
        if view.spec.use_templates
        for image in (view.rollout.serving, view.canary_image)
        if image
    }
    for name in sorted(world.templates - wanted):
        if not world.is_blocked(BreakerKey(Scope.TEMPLATE, name)):
            yield DropTemplate(name)


def _can_spare_warm_vm(world: World, view: PoolView) -> bool:
    """Whether a pool may have one ready VM less for the time of a boot, and no slot is free for a spare one."""
    image, least = view.rollout.serving, max(2, view.spec.min_ready + 1)
    has_all_ready = len(view.ready) == len(view.idle) == view.wanted >= least
    can_boot = image is not None and can_start(world, image) and not world.is_blocked(HOST_KEY)
    is_full = view.free_under_max == 0 or capacity.free(world).lacking_for(view.spec.size) is not None
    return has_all_ready and can_boot and is_full
