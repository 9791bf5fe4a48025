"""`/v1/vms`: the VMs of this agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.api import request_schemas, schemas
from agent.api.addresses import address_of
from agent.api.documents import vm_detail, vm_status
from agent.api.handler_context import context, finish_write, json_response, read_query
from agent.api.operation import Operation
from agent.api.problems import VmUnknownError
from agent.api.request_keys import CALLER

if TYPE_CHECKING:
    from aiohttp import web

    from agent.domain.model import Vm
    from agent.domain.world import World


async def vms(request: web.Request) -> web.Response:
    """List the VMs, oldest first."""
    world = context(request).engine.host.world()
    oldest_first = sorted(world.vms, key=lambda vm: (vm.created_at_s, vm.name))
    return json_response(schemas.VmList(vms=tuple(vm_status(vm, world, request[CALLER]) for vm in oldest_first)))


async def vm(request: web.Request) -> web.Response:
    """Return one VM with its address and probe results."""
    engine = context(request).engine
    name = request.match_info["name"]
    address = await address_of(engine.guests, _find(engine.host.world(), name).name)
    world = engine.host.world()
    found, probes = _find(world, name), engine.host.probes(name)
    return json_response(vm_detail(found, world, request[CALLER], address=address, probes=probes))


async def replace(request: web.Request) -> web.Response:
    """Start the teardown of a VM; its pool is refilled. Returns immediately, with the VM in its new state."""
    engine, name = context(request).engine, request.match_info["name"]
    reason = read_query(request, request_schemas.VmReplacement).reason
    before = _find(engine.host.world(), name)
    await finish_write(request, engine.vms.replace(name, reason=reason))
    world = engine.host.world()
    after = next((vm for vm in world.vms if vm.name == name), before)
    return json_response(vm_status(after, world, request[CALLER]), status=202)


def _find(world: World, name: str) -> Vm:
    found = next((vm for vm in world.vms if vm.name == name), None)
    if found is None:
        raise VmUnknownError(f"no VM of this host is named {name}", remedy="GET /v1/vms lists them")
    return found


OPERATIONS: Final = (
    Operation("vms", "GET", "/v1/vms", vms, "The VMs of this host", schemas.VmList),
    Operation("vm", "GET", "/v1/vms/{name}", vm, "One VM, with its address and probes", schemas.VmDetail,
              errors=(404,)),
    Operation("replace-vm", "DELETE", "/v1/vms/{name}", replace, "Tear a VM down and refill its pool",
              schemas.VmStatus, status=202, query=request_schemas.VmReplacement, errors=(404, 409, 422)),
)  # fmt: skip
