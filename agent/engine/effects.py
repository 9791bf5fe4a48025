"""The dispatch table from planned effects to the functions that carry them out.

An effect never raises an expected failure: it records a fact, and the next plan decides.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from agent.domain import actions
from agent.engine import image_effects, snapshot_effects, vm_effects

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from agent.domain.actions import Effect
    from agent.engine.effect_context import EffectContext

    EffectFunction = Callable[[EffectContext, Any], Awaitable[None]]

EFFECTS: Final[Mapping[type[Effect], EffectFunction]] = MappingProxyType(
    {
        actions.CreateVm: vm_effects.create,
        actions.DestroyVm: vm_effects.destroy,
        actions.RemoveStray: vm_effects.remove_stray,
        actions.SuspendVm: snapshot_effects.suspend,
        actions.ResumeVm: snapshot_effects.resume,
        actions.SaveTemplate: snapshot_effects.save_template,
        actions.DropTemplate: snapshot_effects.drop_template,
        actions.ResolveImage: image_effects.resolve,
        actions.PullImage: image_effects.pull,
        actions.EvictImage: image_effects.evict,
    }
)
CHANGES_STORAGE: Final = frozenset({actions.SaveTemplate, actions.DropTemplate, actions.PullImage, actions.EvictImage})
"""Effects that change the local images, the templates or the free space."""


async def perform(context: EffectContext, observe_storage: Callable[[], Awaitable[None]], effect: Effect) -> None:
    """Carry out an effect, and refresh the observed storage if the effect changes it."""
    await EFFECTS[type(effect)](context, effect)
    if type(effect) in CHANGES_STORAGE:
        await observe_storage()
