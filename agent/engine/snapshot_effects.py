"""Effects on snapshots: suspend and resume standby VMs, save and drop the templates that VMs are started from."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from agent.domain.errors import HearthError
from agent.domain.facts import (
    ResumeFailed,
    SuspendFailed,
    TemplateDropFailed,
    TemplateDropped,
    TemplateSaved,
    TemplateSaveFailed,
    VmSuspended,
)
from agent.domain.model import Cause
from agent.engine.effect_context import bounded
from agent.engine.vm_effects import start_cause
from agent.hypervisors.contract import VmSpec

if TYPE_CHECKING:
    from agent.domain.actions import DropTemplate, ResumeVm, SaveTemplate, SuspendVm
    from agent.engine.effect_context import EffectContext

SNAPSHOT_TIMEOUT_S: Final = 300.0
"""A snapshot is gigabytes, and the disk may be slow."""


async def suspend(context: EffectContext, action: SuspendVm) -> None:
    """Suspend a VM to standby. If that fails, the VM fails: its state is unknown."""
    began_s = time.monotonic()
    try:
        await bounded(context.hypervisor.suspend(action.vm), SNAPSHOT_TIMEOUT_S, "the suspension")
    except (HearthError, OSError) as error:
        await context.record(SuspendFailed(action.vm, Cause.SUSPEND_FAILED, str(error)))
        return
    await context.record(VmSuspended(action.vm, time.monotonic() - began_s))


async def resume(context: EffectContext, action: ResumeVm) -> None:
    """Resume a standby VM. It is ready when it passes its startup probes again."""
    spec = VmSpec(action.vm, action.pool.size, action.pool.ports)
    try:
        await bounded(context.hypervisor.resume(spec), SNAPSHOT_TIMEOUT_S, "the resumption")
    except (HearthError, OSError) as error:
        await context.record(ResumeFailed(action.vm, start_cause(error, Cause.RESUME_FAILED), str(error)))


async def save_template(context: EffectContext, action: SaveTemplate) -> None:
    """Save a template from a ready VM. If that fails, new VMs boot instead."""
    began_s = time.monotonic()
    try:
        saving = context.hypervisor.save_template(action.vm, action.template)
        await bounded(saving, SNAPSHOT_TIMEOUT_S, "the save of the template")
    except (HearthError, OSError) as error:
        await context.record(TemplateSaveFailed(action.template, action.vm, str(error)))
        return
    await context.record(TemplateSaved(action.template, action.vm, time.monotonic() - began_s))


async def drop_template(context: EffectContext, action: DropTemplate) -> None:
    """Remove a template."""
    try:
        dropping = context.hypervisor.drop_template(action.template)
        await bounded(dropping, SNAPSHOT_TIMEOUT_S, "the removal of the template")
    except (HearthError, OSError) as error:
        await context.record(TemplateDropFailed(action.template, str(error)))
        return
    await context.record(TemplateDropped(action.template))
