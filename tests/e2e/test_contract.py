"""The OpenAPI document against a live agent, by schemathesis: with every role, in every phase it has.

HEARTH_SLOW=1 asks for many more cases.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.api.auth import Role, create_token, tokens_path
from scripts.lib.bench import simulated

if TYPE_CHECKING:
    from scripts.lib.host import Host

ROOT = Path(__file__).parents[2]
SLOW = os.environ.get("HEARTH_SLOW") == "1"
CASES = 100 if SLOW else 4
LIMIT_S = 1200 if SLOW else 120
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,unsupported_method,allow_header_conformance"
)


async def ask(live: Host, folder: Path, role: Role | None) -> str:
    """Run schemathesis as a caller of a role. Returns what it found to complain about."""
    port = (live.data_dir / "api.port").read_text().strip()
    arguments = ["-m", "schemathesis.cli", "run", f"http://127.0.0.1:{port}/openapi.json", "--checks", CHECKS]
    arguments += ["--max-examples", str(CASES), "--request-timeout", "10", "--generation-database", "none"]
    arguments += ["--generation-deterministic", "--no-shrink", "--suppress-health-check", "all", "--warnings", "off"]
    if role is not None:
        token = create_token(tokens_path(live.data_dir), role.name, role, now_s=time.time())
        arguments += ["--header", f"Authorization: Bearer {token}"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.e2e.schema_hooks", "NO_COLOR": "1"},
    )  # fmt: skip
    said, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)
    return said.decode()[-8000:] if process.returncode else ""


@pytest.mark.timeout(4 * LIMIT_S)
async def test_the_live_agent_keeps_its_contract_with_everybody(host: Host, tmp_path: Path) -> None:
    simulated.configure(host)
    text = host.config.read_text().replace("[api]\n", "[api]\nrate_per_s = 1e6\nrate_burst = 1000000\n")
    host.config.write_text(f'{text}[assignment]\nsource = "api"\n')
    await host.start()
    await host.call("PUT", "/v1/assignment", {"pools": {"small": {"image": "oci-layout:/nowhere:1"}}})
    complaints = {role: await ask(host, tmp_path, role) for role in (None, Role.READ, Role.LEASE, Role.ADMIN)}
    assert "\n".join(complaints.values()).strip() == ""
    assert host.running
    assert "api-error" not in host.output()
