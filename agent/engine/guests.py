"""Access to guests for callers of the API: addresses and commands."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.hypervisors.sessions import open_exec

if TYPE_CHECKING:
    from agent.hypervisors.contract import Address, ExecResult, Hypervisor
    from agent.hypervisors.sessions import ExecSession

ADDRESS_TIMEOUT_S: Final = 2.0
"""A lease must not wait long for its address: a client can read it later."""


@dataclass(frozen=True, slots=True)
class Guests:
    """The guests of running VMs."""

    hypervisor: Hypervisor

    async def address(self, vm: str) -> Address:
        """Return the address of a VM. Raises `HypervisorError`, or `TimeoutError` after `ADDRESS_TIMEOUT_S`."""
        async with asyncio.timeout(ADDRESS_TIMEOUT_S):
            return await self.hypervisor.address(vm)

    async def execute(self, vm: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
        """Run a command in a guest. Raises `GuestError` if the guest does not answer in time."""
        return await self.hypervisor.execute(vm, argv, timeout_s=timeout_s)

    async def open_exec(self, vm: str, argv: tuple[str, ...], *, stdin: bool) -> ExecSession:
        """Start a command in a guest and return its session. Raises `GuestError`."""
        return await open_exec(self.hypervisor, vm, argv, stdin=stdin)
