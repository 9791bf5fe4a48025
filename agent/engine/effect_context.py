"""The context of effects: hypervisor, images and state store, with a time limit on every external call."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from agent.domain.errors import HearthError
from agent.engine.schema import JournalError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from agent.domain.facts import Fact
    from agent.domain.stored_state import StoredState
    from agent.engine.evidence import Evidence
    from agent.engine.state_store import StateStore
    from agent.hypervisors.contract import Hypervisor
    from agent.images.contract import Images

T = TypeVar("T")
log = structlog.get_logger()

RETRY_S: Final = 1.0


class TooSlowError(HearthError):
    """An external call exceeded its time limit."""

    code = "too-slow"


class UnexpectedError(HearthError):
    """An external call raised an error that its module does not document: a defect of that module."""

    code = "unexpected"


@dataclass(frozen=True, slots=True)
class EffectContext:
    """What effects work with."""

    hypervisor: Hypervisor
    images: Images
    store: StateStore
    evidence: Evidence

    async def record(self, fact: Fact) -> StoredState:
        """Record how an effect ended; return the state after it.

        While the journal cannot be written, for example on a full disk, this retries: the effect's resource stays busy,
        so nothing is planned on a record that is out of date.
        """
        while True:
            try:
                return await self.store.record(fact)
            except JournalError as error:
                log.error("end-not-written", error=str(error))  # noqa: TRY400 - the message is complete
            await asyncio.sleep(RETRY_S)


async def bounded(awaitable: Awaitable[T], limit_s: float, operation: str) -> T:
    """Await at most `limit_s`. Raises `TooSlowError` that names `operation`.

    An error that the call does not document becomes an `UnexpectedError`, so that it is recorded and backs off like
    every other failure.
    """
    try:
        async with asyncio.timeout(limit_s):
            return await awaitable
    except TimeoutError:
        raise TooSlowError(
            f"{operation} took longer than {limit_s:g} s and was cancelled", remedy="the agent retries automatically"
        ) from None
    except (HearthError, OSError):
        raise
    except Exception as error:
        log.exception("call-raised", operation=operation)
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise UnexpectedError(
            f"{operation} failed unexpectedly: {reason}", remedy="report this defect with the agent's log"
        ) from error
