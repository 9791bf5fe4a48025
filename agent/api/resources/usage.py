"""`/v1/usage`: the resource usage of the VMs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from aiohttp import web

from agent.api import usage_schemas
from agent.api.handler_context import context, json_response
from agent.api.operation import Operation
from agent.host.usage import UsageSampler, VmUsage

if TYPE_CHECKING:
    from agent.domain.model import Vm

_NOTHING: Final = VmUsage(0.0, 0)
SAMPLER: Final = web.AppKey("usage_sampler", UsageSampler)


async def usage(request: web.Request) -> web.Response:
    """Return the resource usage of each VM."""
    vms = sorted(context(request).engine.host.world().vms, key=lambda vm: (vm.created_at_s, vm.name))
    measured = await request.app[SAMPLER].sample(tuple(vm.name for vm in vms))
    return json_response(
        usage_schemas.UsageDocument(
            at=datetime.fromtimestamp(measured.at_s, UTC),
            host=usage_schemas.HostUsage(
                cpus=measured.cpus,
                cpu_busy_s=measured.cpu_busy_s,
                load_1m=measured.load_1m,
                memory_total_bytes=measured.memory_total_bytes,
                memory_available_bytes=measured.memory_available_bytes,
            ),
            vms=tuple(_of(vm, measured.vms.get(vm.name, _NOTHING)) for vm in vms),
        )
    )


def _of(vm: Vm, taken: VmUsage) -> usage_schemas.VmUsage:
    return usage_schemas.VmUsage(
        name=vm.name, pool=vm.pool, state=vm.state, cpus=vm.size.cpus, memory_mib=vm.size.memory_mib,
        cpu_s=taken.cpu_s, resident_bytes=taken.resident_bytes,
    )  # fmt: skip


OPERATIONS: Final = (
    Operation("usage", "GET", "/v1/usage", usage, "Resource usage of each VM", usage_schemas.UsageDocument),
)
