"""`/v1/rollouts`: the rollout of each pool, and the commands to retry or undo it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.api import operator_schemas, request_schemas
from agent.api.documents import rollout_document
from agent.api.handler_context import context, finish_write, json_response, read_query
from agent.api.operation import Operation

if TYPE_CHECKING:
    from aiohttp import web


async def rollouts(request: web.Request) -> web.Response:
    """List the rollouts by pool."""
    known = context(request).engine.host.world().rollouts
    listed = tuple(rollout_document(known[pool]) for pool in sorted(known))
    return json_response(operator_schemas.RolloutList(rollouts=listed))


async def retry(request: web.Request) -> web.Response:
    """Start another trial of the target: its quarantine, failures and breaker are reset."""
    operations = context(request).engine.operations
    return json_response(
        rollout_document(await finish_write(request, operations.retry_rollout(request.match_info["pool"])))
    )


async def undo(request: web.Request) -> web.Response:
    """Return to the version before the target. The target is quarantined until it changes or is retried."""
    operations, reason = context(request).engine.operations, read_query(request, request_schemas.Reason).reason
    pool = request.match_info["pool"]
    return json_response(rollout_document(await finish_write(request, operations.undo_rollout(pool, reason=reason))))


OPERATIONS: Final = (
    Operation("rollouts", "GET", "/v1/rollouts", rollouts, "The rollouts by pool",
              operator_schemas.RolloutList),
    Operation("retry-rollout", "POST", "/v1/rollouts/{pool}/retry", retry, "Try a pool's target again",
              operator_schemas.PoolRollout, errors=(404, 409)),
    Operation("undo-rollout", "POST", "/v1/rollouts/{pool}/undo", undo, "Return to the previous version",
              operator_schemas.PoolRollout, query=request_schemas.Reason, errors=(404, 409, 422)),
)  # fmt: skip
