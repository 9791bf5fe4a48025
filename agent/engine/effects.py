"""What actions do to the world context: each step bounded in time, each end in the journal.

An effect never raises for what it is prepared for: it writes down what happened, and the next plan decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.domain.actions import (
    CreateVm,
    DestroyVm,
    DropTemplate,
    EvictImage,
    PullImage,
    RemoveStray,
    ResolveImage,
    ResumeVm,
    SaveTemplate,
    SuspendVm,
)
from agent.engine import image_effects, standby_effects, vm_effects

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.domain.actions import Action
    from agent.engine.effect_context import EffectContext


@dataclass(frozen=True, slots=True)
class Effects:
    """Performs actions. `look_at_stock` is awaited after those that change which images and templates stand here."""

    context: EffectContext
    look_at_stock: Callable[[], Awaitable[None]]

    async def perform(self, action: Action) -> None:
        """Do what an action asks. Actions that were wholly intent have nothing left to do."""
        match action:
            case CreateVm() | DestroyVm() | RemoveStray() | SuspendVm() | ResumeVm():
                await self._work_on_vm(action)
            case ResolveImage(reference):
                await image_effects.resolve(self.context, reference)
            case PullImage() | EvictImage() | SaveTemplate() | DropTemplate():
                await self._work_on_stock(action)
                await self.look_at_stock()

    async def _work_on_vm(self, action: CreateVm | DestroyVm | RemoveStray | SuspendVm | ResumeVm) -> None:
        match action:
            case CreateVm():
                await vm_effects.create(self.context, action)
            case DestroyVm(name, _, evidence):
                await vm_effects.destroy(self.context, name, evidence=evidence)
            case RemoveStray(name):
                await vm_effects.reap(self.context, name)
            case SuspendVm(name):
                await standby_effects.suspend(self.context, name)
            case ResumeVm():
                await standby_effects.resume(self.context, action)

    async def _work_on_stock(self, action: PullImage | EvictImage | SaveTemplate | DropTemplate) -> None:
        match action:
            case PullImage(reference, digest):
                await image_effects.pull(self.context, reference, digest)
            case EvictImage(digest):
                await image_effects.evict(self.context, digest)
            case SaveTemplate():
                await standby_effects.save_template(self.context, action)
            case DropTemplate(template):
                await standby_effects.drop_template(self.context, template)
