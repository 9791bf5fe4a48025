"""Standby VMs and templates, each rule by an example on a simulated host."""

from __future__ import annotations

import pytest

from agent.domain.actions import CreateVm, DestroyVm, ResumeVm, SaveTemplate, SuspendVm
from agent.domain.events import EventKind
from agent.domain.model import Cause, HostLimits, PoolSpec, VmSize
from agent.domain.snapshots import template_name
from agent.domain.states import VmState
from tests.domain.simulation import Host, assigned, digest


def standby_host(*, warm: int = 1, standby: int = 2, slots: int = 3) -> Host:
    """Return a settled host that keeps standby VMs."""
    pool = PoolSpec("ci", "reg/ci:latest", warm=warm, standby=standby)
    host = Host(limits=HostLimits(slots, 64, 65536), pools=(pool,), can_suspend=True)
    host.registry["reg/ci:latest"] = digest("v1")
    host.settle()
    return host


def template_host(*, warm: int = 2, slots: int = 2) -> Host:
    """Return a settled host with a hypervisor that supports templates."""
    pool = PoolSpec("ci", "reg/ci:latest", warm=warm)
    host = Host(limits=HostLimits(slots, 64, 65536), pools=(pool,), can_use_templates=True)
    host.registry["reg/ci:latest"] = digest("v1")
    host.settle()
    return host


KEY = template_name(digest("v1"), VmSize())


def test_standby_vms_hold_no_slot() -> None:
    host = standby_host(warm=1, standby=3, slots=2)
    assert len(host.in_state("ci", VmState.READY)) == 1
    assert len(host.in_state("ci", VmState.STANDBY)) == 3
    assert host.used().slots == 1


def test_warm_vms_are_suspended_one_at_a_time_without_a_free_slot() -> None:
    host = standby_host(warm=2, standby=2, slots=2)
    assert len(host.in_state("ci", VmState.READY)) == 2
    assert len(host.in_state("ci", VmState.STANDBY)) == 2
    assert host.events.count(EventKind.VM_CREATING) == 4, "no VM more than is kept"
    assert not host.events.count(EventKind.VM_RESUMING), "nothing went back and forth"


def test_last_ready_vm_is_not_suspended() -> None:
    host = standby_host(warm=1, standby=1, slots=1)
    assert len(host.in_state("ci", VmState.READY)) == 1
    assert not host.in_state("ci", VmState.STANDBY)


def test_dead_vm_is_replaced_by_a_resume_without_a_free_slot() -> None:
    host = standby_host(warm=2, standby=1, slots=2)
    victim, *_ = host.in_state("ci", VmState.READY)
    host.die(victim.name)
    host.reconcile()
    host.finish(victim.name)
    (resume,) = host.reconcile().actions
    assert isinstance(resume, ResumeVm)
    host.finish(resume.vm)
    host.pass_probes(resume.vm)
    host.settle()
    assert [len(host.in_state("ci", state)) for state in (VmState.READY, VmState.STANDBY)] == [2, 1]


def test_request_resumes_a_vm_that_was_just_suspended() -> None:
    host = standby_host(warm=2, standby=0, slots=2)
    assigned(host, standby=1)
    (suspend,) = host.reconcile().actions
    assert isinstance(suspend, SuspendVm)
    assert suspend.replacement_due
    host.finish(suspend.vm)
    for _ in range(2):
        host.request_lease("ci")
    resumed = [action.vm for action in host.reconcile().actions if isinstance(action, ResumeVm)]
    assert resumed == [suspend.vm]


def test_dead_vm_is_replaced_by_a_resume() -> None:
    host = standby_host()
    (victim,) = host.in_state("ci", VmState.READY)
    host.die(victim.name)
    actions = host.reconcile().actions
    assert {type(action) for action in actions} >= {DestroyVm, ResumeVm}
    (resume,) = (action for action in actions if isinstance(action, ResumeVm))
    host.finish(resume.vm)
    host.pass_probes(resume.vm)
    assert host.vms[resume.vm].state is VmState.READY


def test_failed_resume_fails_only_its_vm() -> None:
    host = standby_host()
    (victim,) = host.in_state("ci", VmState.READY)
    host.die(victim.name)
    (resume,) = (action for action in host.reconcile().actions if isinstance(action, ResumeVm))
    host.finish(resume.vm, ok=False)
    failure = host.vms[resume.vm].failure
    assert failure is not None
    assert failure.cause is Cause.RESUME_FAILED
    host.settle()
    assert resume.vm not in host.vms
    assert len(host.in_state("ci", VmState.READY)) == 1
    assert len(host.in_state("ci", VmState.STANDBY)) == 2


def test_suspension_interrupted_by_a_restart_ends_in_teardown() -> None:
    host = standby_host(standby=0)
    assigned(host, standby=1)
    for _ in range(20):
        host.reconcile()
        if host.in_state("ci", VmState.SUSPENDING):
            break
        for resource in list(host.in_flight):
            host.finish(resource)
        for name in list(host.vms):
            host.pass_probes(name)
    (half,) = host.in_state("ci", VmState.SUSPENDING)
    host.restart_agent()
    host.settle()
    assert half.name not in host.vms
    assert len(host.in_state("ci", VmState.STANDBY)) == 1


def test_standby_vm_without_its_snapshot_is_replaced() -> None:
    host = standby_host(standby=1)
    (lost,) = host.in_state("ci", VmState.STANDBY)
    host.suspended.discard(lost.name)
    host.observe()
    host.reconcile()
    host.settle()
    assert lost.name not in host.vms
    assert len(host.in_state("ci", VmState.STANDBY)) == 1


def test_standby_vms_of_an_old_version_are_removed() -> None:
    host = standby_host()
    host.registry["reg/ci:latest"] = digest("v2")
    host.now_s += 301
    host.settle()
    assert {vm.image for vm in host.vms.values()} == {digest("v2")}
    assert len(host.in_state("ci", VmState.STANDBY)) == 2


def test_one_template_is_saved_per_version() -> None:
    host = template_host()
    assert host.templates == {KEY}
    assert not any(isinstance(action, SaveTemplate) for action in host.reconcile().actions)


def test_replacement_starts_from_the_template() -> None:
    host = template_host()
    victim = next(iter(host.vms))
    host.die(victim)
    host.reconcile()
    host.finish(victim)
    (creation,) = host.reconcile().actions
    assert isinstance(creation, CreateVm)
    assert creation.template == KEY


def test_vm_that_never_gets_ready_counts_against_its_template() -> None:
    host = template_host()
    victim = next(iter(host.vms))
    host.die(victim)
    host.reconcile()
    host.finish(victim)
    (creation,) = host.reconcile().actions
    host.finish(creation.resource)
    host.die(creation.resource)
    host.reconcile()
    host.finish(creation.resource)
    (second,) = host.reconcile().actions
    assert isinstance(second, CreateVm)
    assert second.template is None


def test_unused_templates_are_removed() -> None:
    host = template_host()
    host.registry["reg/ci:latest"] = digest("v2")
    host.now_s += 301
    host.settle()
    assert host.templates == {template_name(digest("v2"), VmSize())}


def test_guest_without_template_support_boots() -> None:
    host = template_host()
    host.templates.clear()
    (saving,) = host.reconcile().actions
    assert isinstance(saving, SaveTemplate)
    host.finish(saving.vm, ok=False)
    assert host.reconcile().actions == ()
    assert host.in_state("ci", VmState.READY)


@pytest.mark.parametrize("limit", ["max_age_s", "max_idle_s"])
def test_aged_idle_vms_are_replaced_one_at_a_time(limit: str) -> None:
    host = standby_host(warm=2, standby=0)
    before = set(host.vms)
    assigned(host, **{limit: 100.0})
    host.now_s += 10**6
    planned = [action for action in host.reconcile().actions if isinstance(action, DestroyVm)]
    assert len(planned) == 1
    assert planned[0].vm in before
