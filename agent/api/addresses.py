"""Addresses of VMs for responses, without a long wait for the hypervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from agent.api.engine_protocols import Guests
    from agent.hypervisors.contract import Address

log = structlog.get_logger()


async def address_of(guests: Guests, vm: str) -> Address | None:
    """Return the address of a VM, or None if the hypervisor does not return it in time."""
    try:
        return await guests.address(vm)
    except (HearthError, TimeoutError) as error:
        log.info("address-unknown", vm=vm, error=str(error) or "the hypervisor did not answer in time")
        return None
