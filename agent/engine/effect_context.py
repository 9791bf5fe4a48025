"""The world context, as effects reach it: hypervisor and images, with a bound on everything that is waited for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from agent.domain.errors import HearthError
from agent.engine.database import JournalError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.engine.evidence import Evidence
    from agent.engine.state_store import StateStore, Transaction
    from agent.hypervisors.contract import Hypervisor
    from agent.images.contract import Images

T = TypeVar("T")
log = structlog.get_logger()

RETRY_S: Final = 1.0


class TooSlowError(HearthError):
    """The context world did not answer in time."""

    code = "too-slow"


@dataclass(frozen=True, slots=True)
class EffectContext:
    """What effects work on, and the store they write their ends into. `jitter` gives numbers from 0 to 1."""

    hypervisor: Hypervisor
    images: Images
    store: StateStore
    evidence: Evidence
    jitter: Callable[[], float]

    async def record(self, write: Callable[[Transaction], T]) -> T:
        """Write how an effect ended, and return what `write` does.

        While the journal cannot be written, as on a full disk, it is tried again and again: what was done stays known,
        and its resource busy, so that nothing is planned on a world that is not as it is written.
        """
        while True:
            try:
                async with self.store.transaction() as transaction:
                    return write(transaction)
            except JournalError as error:
                log.error("end-not-written", error=str(error))  # noqa: TRY400 - the message says it all
            await asyncio.sleep(RETRY_S)


async def bounded(awaitable: Awaitable[T], limit_s: float, what: str) -> T:
    """Await at most `limit_s`. Raises `TooSlowError` that says what was waited for."""
    try:
        async with asyncio.timeout(limit_s):
            return await awaitable
    except TimeoutError:
        raise TooSlowError(f"{what} took longer than {limit_s:g} s", remedy="it was ended and is retried") from None
