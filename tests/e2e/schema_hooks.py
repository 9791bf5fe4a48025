"""What schemathesis must not do to a live agent: wait for minutes, and pull images from names it made up."""

from __future__ import annotations

from typing import Any

import schemathesis

MAX_WAIT_S = 0.05
NOWHERE = "oci-layout:/nowhere:1"


@schemathesis.hook
def map_query(context: Any, query: Any) -> Any:
    """Let no request be waited with for long."""
    return _bounded(query)


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Let no lease or command be waited with for long, and every pool want an image that is not there."""
    if isinstance(body, dict) and isinstance(pools := body.get("pools"), dict):
        for pool in pools.values():
            if isinstance(pool, dict) and isinstance(pool.get("image"), str):
                pool["image"] = NOWHERE
    return _bounded(body)


def _bounded(fields: Any) -> Any:
    if isinstance(fields, dict):
        for name in ("wait_s", "timeout_s"):
            if isinstance(fields.get(name), (int, float)) and fields[name] > MAX_WAIT_S:
                fields[name] = MAX_WAIT_S
    return fields
