"""`/v1/leases`: VMs leased to jobs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp import web

from agent.api import request_schemas, schemas
from agent.api.addresses import address_of
from agent.api.auth import Role
from agent.api.connection import has_left
from agent.api.documents import lease_document
from agent.api.handler_context import context, finish_write, json_response, read_body
from agent.api.operation import Operation
from agent.api.request_keys import CALLER

if TYPE_CHECKING:
    from agent.domain.model import Lease, Vm

log = structlog.get_logger()


async def acquire(request: web.Request) -> web.Response:
    """Lease a VM. The wait ends with the connection; a lease that the client did not receive is released."""
    body = await read_body(request, request_schemas.LeaseRequest)
    leases = context(request).engine.leases
    lease = await leases.acquire(
        body.pool,
        holder=body.holder,
        ttl_s=body.ttl_s,
        wait_s=body.wait_s,
        idempotency_key=body.idempotency_key,
        owner=request[CALLER].lease_owner,
    )
    try:
        address = await address_of(context(request).engine.guests, lease.vm)
    except asyncio.CancelledError:
        if body.idempotency_key is None:
            await _release_unclaimed(request, lease)
        raise
    if body.idempotency_key is None and has_left(request):
        await _release_unclaimed(request, lease)
    headers = {"Location": f"/v1/leases/{lease.id}"}
    return json_response(lease_document(lease, address, _vm(request, lease)), status=201, headers=headers)


async def _release_unclaimed(request: web.Request, lease: Lease) -> None:
    """Release a lease that its client did not receive. With a key the client could request it again."""
    log.info("lease-unclaimed", lease=lease.id, vm=lease.vm)
    await finish_write(request, context(request).engine.leases.release(lease.id))


async def lease(request: web.Request) -> web.Response:
    """Return a lease."""
    user = request[CALLER].lease_user
    return await _lease_response(request, await context(request).engine.leases.get(request.match_info["id"], user=user))


async def renew(request: web.Request) -> web.Response:
    """Extend a lease."""
    body = await read_body(request, request_schemas.LeaseRenewal)
    leases = context(request).engine.leases
    renewal = leases.renew(request.match_info["id"], ttl_s=body.ttl_s, user=request[CALLER].lease_user)
    return await _lease_response(request, await finish_write(request, renewal))


async def release(request: web.Request) -> web.Response:
    """End a lease."""
    leases, user = context(request).engine.leases, request[CALLER].lease_user
    await finish_write(request, leases.release(request.match_info["id"], user=user))
    return web.Response(status=204)


async def _lease_response(request: web.Request, lease: Lease) -> web.Response:
    address = await address_of(context(request).engine.guests, lease.vm)
    return json_response(lease_document(lease, address, _vm(request, lease)))


def _vm(request: web.Request, lease: Lease) -> Vm | None:
    return next((vm for vm in context(request).engine.host.world().vms if vm.name == lease.vm), None)


OPERATIONS: Final = (
    Operation("acquire-lease", "POST", "/v1/leases", acquire, "Lease a ready VM, or wait for one",
              schemas.LeaseDocument, status=201, body=request_schemas.LeaseRequest, errors=(404, 409, 503),
              role=Role.LEASE),
    Operation("lease", "GET", "/v1/leases/{id}", lease, "One lease", schemas.LeaseDocument,
              errors=(404, 410), role=Role.LEASE),
    Operation("renew-lease", "PATCH", "/v1/leases/{id}", renew, "Extend a lease",
              schemas.LeaseDocument, body=request_schemas.LeaseRenewal, errors=(404, 410), role=Role.LEASE),
    Operation("release-lease", "DELETE", "/v1/leases/{id}", release, "End a lease; its VM is torn down",
              None, status=204, errors=(404, 410), role=Role.LEASE),
)  # fmt: skip
