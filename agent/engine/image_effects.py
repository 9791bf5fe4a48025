"""Effects on images: asking what a reference means, pulling, evicting."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from agent.domain.breaker import Breaker
from agent.domain.errors import HearthError
from agent.domain.events import EventKind
from agent.domain.model import Resolution
from agent.engine.effect_context import bounded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.engine.effect_context import EffectContext
    from agent.engine.state_store import Transaction
    from agent.images.contract import PullProgress

RESOLVE_TIMEOUT_S: Final = 60.0
PULL_TIMEOUT_S: Final = 12 * 3600.0
EVICT_TIMEOUT_S: Final = 300.0
PROGRESS_PERIOD_S: Final = 15.0


async def resolve(context: EffectContext, reference: str) -> None:
    """Ask what a reference means now. When the registry cannot tell, the last answer stays."""
    before = context.store.resolutions.get(reference)
    known = before.digest if before else None
    try:
        digest = await bounded(context.images.resolve(reference), RESOLVE_TIMEOUT_S, "asking the registry")
    except (HearthError, OSError) as error:
        reason = str(error)

        def unresolved(transaction: Transaction) -> None:
            transaction.put(Resolution(reference, known, transaction.now_s, reason))
            _failed(context, EventKind.IMAGE_RESOLVE_FAILED, reference, reason, transaction)

        await context.record(unresolved)
        return

    def resolved(transaction: Transaction) -> None:
        transaction.put(Resolution(reference, digest, transaction.now_s))
        transaction.drop(Breaker, reference)
        if digest != known:
            transaction.event(EventKind.IMAGE_RESOLVED, image=digest, detail=reference)

    await context.record(resolved)


async def pull(context: EffectContext, reference: str, digest: str) -> None:
    """Make an image version whole on this host."""
    began_s = time.monotonic()
    try:
        async with _progress_told(context, digest):
            await bounded(context.images.pull(reference, digest), PULL_TIMEOUT_S, "the pull")
    except (HearthError, OSError) as error:
        reason = str(error)

        def not_pulled(transaction: Transaction) -> None:
            transaction.trip(digest, reason=f"{reference}: {reason}", jitter=context.jitter())
            transaction.event(EventKind.IMAGE_PULL_FAILED, image=digest, detail=reason)

        await context.record(not_pulled)
        return
    took_s = time.monotonic() - began_s

    def pulled(transaction: Transaction) -> None:
        transaction.drop(Breaker, digest)
        transaction.event(EventKind.IMAGE_PULLED, image=digest, detail=reference, duration_s=took_s)

    await context.record(pulled)


@asynccontextmanager
async def _progress_told(context: EffectContext, digest: str) -> AsyncIterator[None]:
    """Tell in events how far the pull of a version is, for as long as the context lasts."""
    ended = asyncio.Event()

    async def tell() -> None:
        while not ended.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(PROGRESS_PERIOD_S):
                    await ended.wait()
                return
            for progress in context.images.progress():
                if progress.digest == digest and progress.total_bytes:
                    await context.record(partial(_pulling, progress))

    telling = asyncio.create_task(tell(), name=f"progress of {digest}")
    try:
        yield
    finally:
        ended.set()  # and not cancelled, which could leave half a transaction
        await telling


def _pulling(progress: PullProgress, transaction: Transaction) -> None:
    left = "" if progress.eta_s is None else f", {progress.eta_s:.0f} s left"
    detail = (
        f"{progress.reference}: {progress.done_bytes / 1e6:.0f} of {progress.total_bytes / 1e6:.0f} MB, "
        f"{progress.rate_bytes_per_s / 1e6:.1f} MB/s{left}, from {progress.source}"
    )
    transaction.event(EventKind.IMAGE_PULLING, image=progress.digest, detail=detail)


async def evict(context: EffectContext, digest: str) -> None:
    """Remove an image version from this host."""
    try:
        await bounded(context.images.remove(digest), EVICT_TIMEOUT_S, "removing the image")
    except (HearthError, OSError) as error:
        await context.record(partial(_failed, context, EventKind.IMAGE_EVICT_FAILED, digest, str(error)))
        return

    def evicted(transaction: Transaction) -> None:
        transaction.drop(Breaker, digest)
        transaction.event(EventKind.IMAGE_EVICTED, image=digest)

    await context.record(evicted)


def _failed(context: EffectContext, kind: EventKind, what: str, reason: str, transaction: Transaction) -> None:
    """Write that something could not be done with an image or a reference, which is left alone for a while."""
    transaction.trip(what, reason=reason, jitter=context.jitter())
    transaction.event(kind, image=what, detail=reason)
