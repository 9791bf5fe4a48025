"""What every fact changes: one pure function, and one handler per fact in a table.

The engine commits the returned changes in one transaction and decides nothing itself. An action of a plan is recorded
before its effect starts.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from agent.domain import actions, facts, record_clock, record_commands, record_images, record_leases, record_vms
from agent.domain.breaker import Breaker, BreakerKey, Scope
from agent.domain.draft import Draft

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.domain.actions import Action
    from agent.domain.facts import Fact
    from agent.domain.stored_state import Changes, StoredState


def record(state: StoredState, fact: Fact | Action, now_s: float, jitter: float) -> Changes:
    """Return what `fact` changes in `state`. `jitter` is a random number from 0 to 1.

    A report about a VM that the state does not hold any more changes nothing. A request that cannot be met raises
    `VmUnknownError`, `VmLeasedError`, `LeaseNotFoundError`, `PoolUnknownError`, `NothingToRetryError` or
    `NothingToUndoError`.
    """
    draft = Draft(state, now_s, jitter)
    HANDLERS[type(fact)](draft, fact)
    reset_key = RESETS.get(type(fact))
    if reset_key is not None and (key := reset_key(state, fact)) in state.breakers:
        draft.drop(Breaker, key)
    return draft.changes()


def _names(scope: Scope, field: str) -> Callable[[StoredState, Any], BreakerKey]:
    """Return a function that reads the breaker key of a fact from one of its fields."""
    return lambda _, fact: BreakerKey(scope, getattr(fact, field))


def _target_version(state: StoredState, fact: facts.RolloutRetried) -> BreakerKey:
    return BreakerKey(Scope.IMAGE, state.rollouts[fact.pool].target or "")


HANDLERS: Final[Mapping[type[Fact | Action], Callable[[Draft, Any], None]]] = MappingProxyType(
    {
        # Planned actions. The other effects change nothing before they end.
        actions.MarkFailed: record_vms.mark_failed,
        actions.NotifyHolder: record_vms.notify_of_failure,
        actions.CreateVm: record_vms.create_vm,
        actions.SuspendVm: record_vms.suspend_vm,
        actions.ResumeVm: record_vms.resume_vm,
        actions.DestroyVm: record_vms.destroy_vm,
        actions.ExpireLease: record_leases.expire_lease,
        actions.GrantLease: record_leases.grant_lease,
        **dict.fromkeys(
            (
                actions.RemoveStray,
                actions.SaveTemplate,
                actions.DropTemplate,
                actions.ResolveImage,
                actions.PullImage,
                actions.EvictImage,
            ),
            lambda _draft, _action: None,
        ),
        # Ends of effects on VMs
        facts.VmCloned: record_vms.vm_cloned,
        facts.CloneFailed: record_vms.vm_effect_failed,
        facts.StartFailed: record_vms.vm_effect_failed,
        facts.SuspendFailed: record_vms.vm_effect_failed,
        facts.ResumeFailed: record_vms.vm_effect_failed,
        facts.TemplateStartFailed: record_vms.template_start_failed,
        facts.VmSuspended: record_vms.vm_suspended,
        facts.VmRemoved: record_vms.vm_removed,
        facts.TeardownFailed: record_vms.teardown_failed,
        facts.StrayRemoved: record_vms.stray_removed,
        facts.StrayRemovalFailed: record_vms.stray_removal_failed,
        facts.EvidenceFailed: record_vms.evidence_failed,
        # Reports about VMs
        facts.StartupProbesPassed: record_vms.startup_probes_passed,
        facts.ProbeFailed: record_vms.probe_failed,
        facts.ProcessExited: record_vms.process_exited,
        facts.VmAdopted: record_vms.vm_adopted,
        # Ends of effects on images and templates
        facts.ReferenceResolved: record_images.reference_resolved,
        facts.ResolveFailed: record_images.resolve_failed,
        facts.PullProgressed: record_images.pull_progressed,
        facts.PullFinished: record_images.pull_finished,
        facts.PullFailed: record_images.pull_failed,
        facts.ImageEvicted: record_images.image_evicted,
        facts.EvictionFailed: record_images.eviction_failed,
        facts.TemplateSaved: record_images.template_saved,
        facts.TemplateSaveFailed: record_images.template_save_failed,
        facts.TemplateDropped: record_images.template_dropped,
        facts.TemplateDropFailed: record_images.template_drop_failed,
        # Leases, commands of operators, assignments
        facts.VmGranted: record_leases.grant_lease,
        facts.LeaseRenewed: record_leases.renew_lease,
        facts.LeaseReleased: record_leases.release_lease,
        facts.ModeSet: record_commands.set_mode,
        facts.ReplacementRequested: record_commands.replace_vm,
        facts.RolloutRetried: record_commands.retry_rollout,
        facts.RolloutUndone: record_commands.undo_rollout,
        facts.AssignmentAccepted: record_commands.accept_assignment,
        facts.AssignmentRefused: record_commands.refuse_assignment,
        facts.RolloutsAdvanced: record_commands.advance_rollouts,
        # The clock
        facts.ClockRead: record_clock.read_clock,
        facts.ClockStepped: record_clock.step_clock,
    }
)
"""The handler of every fact and action."""

RESETS: Final[Mapping[type[Fact | Action], Callable[[StoredState, Any], BreakerKey]]] = MappingProxyType(
    {
        facts.VmRemoved: _names(Scope.VM, "vm"),
        facts.StrayRemoved: _names(Scope.VM, "vm"),
        facts.ReferenceResolved: _names(Scope.REFERENCE, "reference"),
        facts.PullFinished: _names(Scope.IMAGE, "digest"),
        facts.ImageEvicted: _names(Scope.IMAGE, "digest"),
        facts.TemplateSaved: _names(Scope.TEMPLATE, "template"),
        facts.TemplateDropped: _names(Scope.TEMPLATE, "template"),
        facts.RolloutRetried: _target_version,
    }
)
"""The facts that reset a breaker, with the breaker they reset. Besides, ten minutes without a failure start its count
again (`agent.domain.breaker`), and `hearth journal rebuild` drops all breakers."""
