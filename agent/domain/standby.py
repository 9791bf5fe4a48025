"""The rules for VMs beyond the slots: standby, and the memories that new VMs are started from.

A standby VM was proven and then suspended: it holds no slot, and a resume brings it back many times faster than a boot.
A template is the saved memory of one proven VM from which any number of new ones start, where the hypervisor can.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.domain import capacity
from agent.domain.actions import DestroyVm, DropTemplate, SaveTemplate, SuspendVm
from agent.domain.breaker import HOST_BREAKER, held_back
from agent.domain.pool_view import pool_views, shortage, usable
from agent.domain.rollout import Phase
from agent.domain.states import VmState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.domain.model import PoolSpec, VmSize, World
    from agent.domain.pool_view import PoolView


def template_key(image: str, size: VmSize) -> str:
    """Return the name of the memory for VMs of one image version and size: a memory fits no other size."""
    return f"{image.replace(':', '-')}-{size.cpus}x{size.memory_mib}"


def template_for(world: World, pool: PoolSpec, image: str) -> str | None:
    """Return the template that a new VM of `pool` should start from, or None when it has to boot."""
    key = template_key(image, pool.size)
    usable = pool.use_templates and key in world.templates and not held_back(world, key)
    return key if usable else None


def retire_standby(world: World) -> Iterator[DestroyVm]:
    """Tear down standby VMs that their pool does not want: of another version, too many, or of no pool any more."""
    views = {view.spec.name: view for view in pool_views(world)}
    for vm in world.vms:
        if vm.state is not VmState.STANDBY:
            continue
        view = views.get(vm.pool)
        if view is None or world.draining:
            yield DestroyVm(vm.name, "its pool does not need it any more")
        elif vm.image != view.rollout.serving:
            yield DestroyVm(vm.name, "another image version serves this pool")
        elif vm in view.standby[view.spec.standby :]:
            yield DestroyVm(vm.name, "the pool has more standby VMs than it wants")


def suspend_spares(world: World) -> Iterator[SuspendVm]:
    """Suspend a spare ready VM for each pool whose standby is short. `fill` makes the spare where a slot is free.

    Where none is, a pool with all its VMs ready suspends one of them, and is owed a new one: it has one less until that
    has booted. The replacement is made before a standby VM takes its place, else the two would change for ever.
    """
    if not world.can_suspend or world.draining or world.disk_full:
        return
    views = pool_views(world)
    calm = not any(shortage(view) for view in views) and all(vm.alive for vm in world.vms)
    for view in views:
        if not wants_standby(view) or any(vm.replacement_due or vm.state is VmState.SUSPENDING for vm in view.standby):
            continue
        ready = [vm for vm in view.ready if vm.image == view.rollout.serving]
        if len(ready) > view.wanted:
            yield SuspendVm(ready[0].name)
        elif calm and _may_lend(world, view):
            yield SuspendVm(ready[0].name, replacement_due=True)
            return  # one at a time: the room it leaves is for the new one


def _may_lend(world: World, view: PoolView) -> bool:
    """Whether a pool can do with one ready VM less for the time of a boot, and there is no room for a spare one."""
    image, least = view.rollout.serving, max(2, view.spec.min_ready + 1)
    settled = len(view.ready) == len(view.idle) == view.wanted >= least
    can_boot = image is not None and usable(world, image) and not held_back(world, HOST_BREAKER)
    no_room = view.room_under_max == 0 or capacity.free(world).lacking_for(view.spec.size) is not None
    return settled and can_boot and no_room


def wants_standby(view: PoolView) -> bool:
    """Whether a settled pool has fewer standby VMs than it should."""
    return view.rollout.phase is Phase.SERVING and len(view.standby) < view.spec.standby


def save_templates(world: World) -> Iterator[SaveTemplate]:
    """Keep the memory of one ready VM of every serving version, for the next ones to start from.

    A VM cannot be leased while its memory is saved, so a pool that keeps several waits until another one is ready.
    """
    if not world.can_use_templates or world.draining or world.disk_full:
        return
    planned: set[str] = set()
    for view in pool_views(world):
        image = view.rollout.serving
        if image is None or not view.spec.use_templates or view.waiting:
            continue
        key = template_key(image, view.spec.size)
        booted = [vm for vm in view.ready if vm.image == image and vm.template is None and vm.size == view.spec.size]
        spared = len(view.ready) >= min(2, view.spec.warm)
        if booted and spared and key not in world.templates | planned and not held_back(world, key):
            planned.add(key)
            yield SaveTemplate(booted[-1].name, key)


def drop_templates(world: World) -> Iterator[DropTemplate]:
    """Remove the memories of versions and sizes that no pool runs any more."""
    wanted = {
        template_key(image, view.spec.size)
        for view in pool_views(world)
        if view.spec.use_templates
        for image in (view.rollout.serving, view.canary_image)
        if image
    }
    for key in sorted(world.templates - wanted):
        if not held_back(world, key):
            yield DropTemplate(key)
