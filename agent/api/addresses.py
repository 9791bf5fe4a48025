"""Asking the hypervisor where a VM is reached, without ever waiting long for the answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from agent.api.engine_protocols import Engine
    from agent.hypervisors.contract import Address

log = structlog.get_logger()

TIMEOUT_S: Final = 2.0


async def address_of(engine: Engine, vm: str) -> Address | None:
    """Return the address, or None when the hypervisor does not tell it within `TIMEOUT_S`."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await engine.address(vm)
    except (HearthError, TimeoutError) as error:
        log.info("address-unknown", vm=vm, error=str(error) or f"no answer within {TIMEOUT_S:g} s")
        return None
