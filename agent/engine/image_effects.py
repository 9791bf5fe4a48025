"""Effects on images: resolve a reference, pull a version, evict a version."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from agent.domain.errors import HearthError
from agent.domain.facts import (
    EvictionFailed,
    ImageEvicted,
    PullFailed,
    PullFinished,
    PullProgressed,
    ReferenceResolved,
    ResolveFailed,
)
from agent.engine.effect_context import TooSlowError, bounded
from agent.images.errors import RegistryDeniedError, RegistryError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.domain.actions import EvictImage, PullImage, ResolveImage
    from agent.engine.effect_context import EffectContext
    from agent.images.contract import PullProgress

RESOLVE_TIMEOUT_S: Final = 60.0
PULL_TIMEOUT_S: Final = 12 * 3600.0
EVICT_TIMEOUT_S: Final = 300.0
PROGRESS_PERIOD_S: Final = 15.0


async def resolve(context: EffectContext, action: ResolveImage) -> None:
    """Query the digest of a reference. If the registry does not return it, the last known digest stays."""
    try:
        digest = await bounded(context.images.resolve(action.reference), RESOLVE_TIMEOUT_S, "the registry query")
    except (HearthError, OSError) as error:
        await context.record(ResolveFailed(action.reference, str(error), outage=_is_outage(error)))
        return
    await context.record(ReferenceResolved(action.reference, digest))


def _is_outage(error: Exception) -> bool:
    """Whether a registry did not answer or cannot work, so that queries of its other images fail too."""
    is_down = isinstance(error, RegistryError) and not isinstance(error, RegistryDeniedError)
    return is_down or isinstance(error, TooSlowError | OSError)


async def pull(context: EffectContext, action: PullImage) -> None:
    """Pull an image version."""
    began_s = time.monotonic()
    try:
        async with _progress_recorded(context, action.digest):
            await bounded(context.images.pull(action.reference, action.digest), PULL_TIMEOUT_S, "the pull")
    except (HearthError, OSError) as error:
        await context.record(PullFailed(action.digest, action.reference, str(error)))
        return
    await context.record(PullFinished(action.digest, action.reference, time.monotonic() - began_s))


async def evict(context: EffectContext, action: EvictImage) -> None:
    """Remove an image version from the local store."""
    try:
        await bounded(context.images.remove(action.digest), EVICT_TIMEOUT_S, "the removal of the image")
    except (HearthError, OSError) as error:
        await context.record(EvictionFailed(action.digest, str(error)))
        return
    await context.record(ImageEvicted(action.digest))


@asynccontextmanager
async def _progress_recorded(context: EffectContext, digest: str) -> AsyncIterator[None]:
    """Record the progress of a pull every `PROGRESS_PERIOD_S` while the context is open."""
    ended = asyncio.Event()

    async def record_progress() -> None:
        while not ended.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(PROGRESS_PERIOD_S):
                    await ended.wait()
                return
            for progress in context.images.progress():
                if progress.digest == digest and progress.total_bytes:
                    await context.record(PullProgressed(digest, _progress_text(progress)))

    task = asyncio.create_task(record_progress(), name=f"progress of {digest}")
    try:
        yield
    finally:
        ended.set()  # not cancelled: that could interrupt a transaction
        await task


def _progress_text(progress: PullProgress) -> str:
    left = "" if progress.eta_s is None else f", {progress.eta_s:.0f} s left"
    waiting = f"; waiting for {progress.waiting}" if progress.waiting else ""
    return (
        f"{progress.reference}: {progress.done_bytes / 1e6:.0f} of {progress.total_bytes / 1e6:.0f} MB, "
        f"{progress.rate_bytes_per_s / 1e6:.1f} MB/s{left}, from {progress.source}{waiting}"
    )
