"""What facts about references, images and templates change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.domain.breaker import Breaker, BreakerKey, Scope, registry_key
from agent.domain.events import EventKind
from agent.domain.failure_attribution import is_registry_failing
from agent.domain.model import Resolution
from agent.domain.text import clip

if TYPE_CHECKING:
    from agent.domain import facts
    from agent.domain.draft import Draft


def reference_resolved(draft: Draft, fact: facts.ReferenceResolved) -> None:
    before = draft.get(Resolution, fact.reference)
    draft.put(Resolution(fact.reference, fact.digest, draft.now_s))
    if draft.get(Breaker, registry_key(fact.reference)) is not None:
        draft.drop(Breaker, registry_key(fact.reference))
    if before is None or before.digest != fact.digest:
        draft.event(EventKind.IMAGE_RESOLVED, image=fact.digest, detail=fact.reference)


def resolve_failed(draft: Draft, fact: facts.ResolveFailed) -> None:
    before = draft.get(Resolution, fact.reference)
    draft.put(Resolution(fact.reference, before.digest if before else None, draft.now_s, clip(fact.reason)))
    registry, breakers = registry_key(fact.reference), draft.all(Breaker)
    is_shared = fact.outage and is_registry_failing(fact.reference, breakers, draft.now_s)
    if is_shared and not any(breaker.key == registry and breaker.is_open(draft.now_s) for breaker in breakers):
        draft.trip(registry, fact.reason)  # queries that fail together count once
    draft.trip(BreakerKey(Scope.REFERENCE, fact.reference), fact.reason)
    if not is_shared and not (before and before.error):
        draft.event(EventKind.IMAGE_RESOLVE_FAILED, image=fact.reference, detail=fact.reason)


def pull_progressed(draft: Draft, fact: facts.PullProgressed) -> None:
    draft.event(EventKind.IMAGE_PULLING, image=fact.digest, detail=fact.detail)


def pull_finished(draft: Draft, fact: facts.PullFinished) -> None:
    draft.event(EventKind.IMAGE_PULLED, image=fact.digest, detail=fact.reference, duration_s=fact.duration_s)


def pull_failed(draft: Draft, fact: facts.PullFailed) -> None:
    draft.trip(BreakerKey(Scope.IMAGE, fact.digest), f"{fact.reference}: {fact.reason}")
    draft.event(EventKind.IMAGE_PULL_FAILED, image=fact.digest, detail=fact.reason)


def image_evicted(draft: Draft, fact: facts.ImageEvicted) -> None:
    draft.event(EventKind.IMAGE_EVICTED, image=fact.digest)


def eviction_failed(draft: Draft, fact: facts.EvictionFailed) -> None:
    draft.trip(BreakerKey(Scope.IMAGE, fact.digest), fact.reason)
    draft.event(EventKind.IMAGE_EVICT_FAILED, image=fact.digest, detail=fact.reason)


def template_saved(draft: Draft, fact: facts.TemplateSaved) -> None:
    draft.event(EventKind.TEMPLATE_SAVED, vm=fact.vm, detail=fact.template, duration_s=fact.duration_s)


def template_save_failed(draft: Draft, fact: facts.TemplateSaveFailed) -> None:
    # The full delay, without jitter: a save pauses a ready VM, and only boots are lost without the template.
    draft.trip(BreakerKey(Scope.TEMPLATE, fact.template), fact.reason, jitter=1.0)
    draft.event(EventKind.TEMPLATE_FAILED, vm=fact.vm, detail=fact.reason)


def template_dropped(draft: Draft, fact: facts.TemplateDropped) -> None:
    draft.event(EventKind.TEMPLATE_DROPPED, detail=fact.template)


def template_drop_failed(draft: Draft, fact: facts.TemplateDropFailed) -> None:
    draft.trip(BreakerKey(Scope.TEMPLATE, fact.template), fact.reason)
    draft.event(EventKind.TEMPLATE_FAILED, detail=fact.reason)
