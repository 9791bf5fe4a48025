"""Hooks of schemathesis for a live agent: use an existing pool, and keep waits short.

They run in schemathesis' own process; the environment variable `POOL_VARIABLE` holds the pool as JSON. Bodies that
violate the schema still violate it afterwards.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any, Final

import schemathesis

POOL_VARIABLE: Final = "HEARTH_TEST_POOL"
POOL: Final = "small"
MAX_WAIT_S: Final = 0.05
WEEK_S: Final = 7 * 86_400
NOWHERE: Final = "oci-layout:/nowhere:1"

_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,20}")
_EVERY_OPERATION: Final = ("401", "403", "421", "429")
"""Statuses of every operation: the agent checks token, role, host name and rate limit before it routes a request."""


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """Remove the document's `default` response, so that an undocumented status is a violation."""
    for operations in raw_schema["paths"].values():
        for operation in operations.values():
            problem = operation["responses"].pop("default")
            for status in _EVERY_OPERATION:
                operation["responses"].setdefault(status, problem)


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    """Use the existing pool in half of the cases."""
    if isinstance(path_parameters, dict) and len(str(path_parameters.get("pool", ""))) % 2:
        path_parameters["pool"] = POOL
    return path_parameters


@schemathesis.hook
def map_query(context: Any, query: Any) -> Any:
    """Shorten the wait of requests."""
    return _bounded(query, {"wait_s": 120})


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Lease from the existing pool, keep it in every assignment, and replace generated image references."""
    if isinstance(body, dict) and isinstance(pools := body.get("pools"), dict):
        for pool in pools.values():
            if isinstance(pool, dict) and isinstance(pool.get("image"), str) and pool["image"]:
                pool["image"] = NOWHERE
        pools[POOL] = json.loads(os.environ[POOL_VARIABLE])
    elif isinstance(body, dict) and isinstance(name := body.get("pool"), str) and _NAME.fullmatch(name):
        body["pool"] = POOL
    return _bounded(body, {"wait_s": 3600, "timeout_s": WEEK_S})


def _bounded(fields: Any, most_s: dict[str, float]) -> Any:
    for name, limit_s in most_s.items():
        value = fields.get(name) if isinstance(fields, dict) else None
        if isinstance(value, (int, float)) and MAX_WAIT_S < value <= limit_s:
            fields[name] = MAX_WAIT_S
    return fields
