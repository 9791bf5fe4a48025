"""Effects on images: asking what a reference means, pulling, evicting."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from agent.domain.breaker import Breaker
from agent.domain.errors import HearthError
from agent.domain.events import EventKind
from agent.domain.model import Resolution
from agent.engine.outside import bounded

if TYPE_CHECKING:
    from agent.engine.outside import Outside

RESOLVE_TIMEOUT_S: Final = 60.0
PULL_TIMEOUT_S: Final = 12 * 3600.0
EVICT_TIMEOUT_S: Final = 300.0


async def resolve(outside: Outside, reference: str) -> None:
    """Ask what a reference means now. When the registry cannot tell, the last answer stays."""
    before = outside.ledger.resolutions.get(reference)
    known = before.digest if before else None
    try:
        digest = await bounded(outside.images.resolve(reference), RESOLVE_TIMEOUT_S, "asking the registry")
    except (HearthError, OSError) as error:
        async with outside.ledger.transaction() as transaction:
            transaction.put(Resolution(reference, known, transaction.now_s, str(error)))
            transaction.trip(reference, reason=str(error), jitter=outside.jitter())
            transaction.event(EventKind.IMAGE_RESOLVE_FAILED, image=reference, detail=str(error))
        return
    async with outside.ledger.transaction() as transaction:
        transaction.put(Resolution(reference, digest, transaction.now_s))
        transaction.drop(Breaker, reference)
        if digest != known:
            transaction.event(EventKind.IMAGE_RESOLVED, image=digest, detail=reference)


async def pull(outside: Outside, reference: str, digest: str) -> None:
    """Make an image version whole on this host."""
    began_s = time.monotonic()
    try:
        await bounded(outside.images.pull(reference, digest), PULL_TIMEOUT_S, "the pull")
    except (HearthError, OSError) as error:
        async with outside.ledger.transaction() as transaction:
            transaction.trip(digest, reason=f"{reference}: {error}", jitter=outside.jitter())
            transaction.event(EventKind.IMAGE_PULL_FAILED, image=digest, detail=str(error))
        return
    async with outside.ledger.transaction() as transaction:
        transaction.drop(Breaker, digest)
        transaction.event(EventKind.IMAGE_PULLED, image=digest, detail=reference, duration_s=time.monotonic() - began_s)


async def evict(outside: Outside, digest: str) -> None:
    """Remove an image version from this host."""
    try:
        await bounded(outside.images.remove(digest), EVICT_TIMEOUT_S, "removing the image")
    except (HearthError, OSError) as error:
        async with outside.ledger.transaction() as transaction:
            transaction.trip(digest, reason=str(error), jitter=outside.jitter())
            transaction.event(EventKind.IMAGE_EVICT_FAILED, image=digest, detail=str(error))
        return
    async with outside.ledger.transaction() as transaction:
        transaction.drop(Breaker, digest)
        transaction.event(EventKind.IMAGE_EVICTED, image=digest)
