"""Conformance of a live agent to its OpenAPI document, by schemathesis, as callers of every role.

HEARTH_SLOW=1 runs many more cases.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from agent.api.auth import Role, create_token, tokens_path
from scripts.lib.bench import simulated
from tests.e2e.conftest import push
from tests.e2e.schema_hooks import POOL, POOL_VARIABLE

if TYPE_CHECKING:
    from scripts.lib.host import Host

pytestmark = pytest.mark.slow

ROOT: Final = Path(__file__).parents[2]
SLOW: Final = os.environ.get("HEARTH_SLOW") == "1"
CASES: Final = 60 if SLOW else 3
LIMIT_S: Final = 1200 if SLOW else 120
WORK: Final = {"lease-granted", "lease-renewed", "lease-released", "exec", "host-mode", "rollout"}
API: Final = 'auth = "token"\nrate_per_s = 1e6\nrate_burst = 1000000\n'
SETTINGS: Final = """
[checks]
# Every check is on, as is the default. A body of 1 MiB is refused for its bytes (413) before its items are counted.
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429]

# 503 is a valid answer here: no VM is free, or the agent is not ready.
[[operations]]
include-name = ["POST /v1/leases", "GET /readyz"]
checks.not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503]

# A lease may have ended, by its expiry or another request (410). OpenAPI cannot express that one of these is a
# WebSocket, and schemathesis opens none (426).
[[operations]]
include-path = ["/v1/leases/{id}", "/v1/leases/{id}/exec"]
checks.positive_data_acceptance.expected-statuses = ["2xx", 401, 403, 404, 410, 426]

# JSON Schema cannot express that one number of a pool limits another (422), or the current entity tag (412).
[[operations]]
include-name = "PUT /v1/assignment"
checks.positive_data_acceptance.expected-statuses = ["2xx", 401, 403, 412, 422]
"""


async def run_schemathesis(live: Host, folder: Path, role: Role | None, pool: object) -> str:
    """Run schemathesis as a caller of a role; return its output when it failed, else an empty string."""
    port = (live.data_dir / "api.port").read_text().strip()
    arguments = ["-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run"]
    arguments += [f"http://127.0.0.1:{port}/openapi.json", "--max-examples", str(CASES), "--request-timeout", "10"]
    arguments += ["--generation-deterministic", "--no-shrink", "--suppress-health-check", "all", "--warnings", "off"]
    if role is not None:
        token = create_token(tokens_path(live.data_dir), role.name, role, now_s=time.time())
        arguments += ["--header", f"Authorization: Bearer {token}"]
    hooks = {POOL_VARIABLE: json.dumps(pool), "SCHEMATHESIS_HOOKS": "tests.e2e.schema_hooks"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **hooks, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
    )  # fmt: skip
    try:
        output, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return output.decode()[-8000:] if process.returncode else ""


@pytest.mark.timeout(4 * LIMIT_S)
async def test_live_agent_conforms_to_openapi_document(host: Host, tmp_path: Path) -> None:
    simulated.configure(host)
    text = host.config.read_text().replace("[api]\n", f"[api]\n{API}")
    host.config.write_text(f'{text}[assignment]\nsource = "api"\n')
    reference = f"oci-layout:{tmp_path}/registry:1"
    await push(simulated.tiny_disk(tmp_path / "disk.img"), reference, tmp_path / "scratch")
    pool = {"image": reference, "warm": 3, "cpus": 1, "memory_mib": 256, "stop_grace_s": 0}
    await host.start()
    await host.call("PUT", "/v1/assignment", {"pools": {POOL: pool}})
    await host.wait_until_warm(3)
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    mild = (None, Role.READ, Role.LEASE)
    failures = await asyncio.gather(*(run_schemathesis(host, tmp_path, caller, pool) for caller in mild))
    failures.append(
        await run_schemathesis(host, tmp_path, Role.ADMIN, pool)
    )  # last: it drains the host and replaces its VMs
    if any(failures):
        pytest.fail("\n".join(failures), pytrace=False)
    assert host.running
    logged = "".join(path.read_text() for path in (host.data_dir / "logs").glob("hearth.log*"))
    assert "api-error" not in logged
    done = {event for event in WORK if f'"{event}"' in logged}
    assert done == WORK, "schemathesis must make requests that succeed"
