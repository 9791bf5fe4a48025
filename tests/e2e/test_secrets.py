"""Secrets are configured for an agent, and searched in all of its output."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

import psutil
import pytest

from agent.api.application import OPERATIONS
from agent.api.auth import Role, create_token, tokens_path
from scripts.lib.bench import simulated

if TYPE_CHECKING:
    from scripts.lib.host import Host

pytestmark = pytest.mark.slow

PASSWORD = "c4n4ry-Pw7Tq2xLz"
REGISTRY = "127.0.0.1:1"
"""No server listens on this port: every pull fails and is reported."""


async def test_secrets_are_not_disclosed(host: Host) -> None:
    simulated.configure(host)
    with host.config.open("a") as config:
        config.write(f'[images.registries."{REGISTRY}"]\ninsecure = true\nusername = "u"\npassword = "{PASSWORD}"\n')
    await host.start()
    token = create_token(tokens_path(host.data_dir), "controller", Role.ADMIN, now_s=time.time())
    secrets = (PASSWORD, token)
    host.assign("small", f"{REGISTRY}/small:1", probes="")
    await host.wait_until(lambda document, _: any(not pool["ready"] and pool["error"] for pool in document["pools"]))

    texts: dict[str, str] = {"output": host.output()}
    headers = {"Authorization": f"Bearer {token}"}
    for operation in OPERATIONS:
        if operation.method == "GET" and operation.needs.name != "NONE":
            async with host.http.get(operation.path.replace("{pool}", "small"), headers=headers) as response:
                texts[operation.path] = await response.text()
    headers["Content-Type"] = "application/json"
    async with host.http.put("/v1/assignment", data=f'{{"{token}": "{PASSWORD}', headers=headers) as response:
        assert response.status == 400
        texts["malformed"] = await response.text()
    processes = (psutil.Process(host.pid), *psutil.Process(host.pid).children(recursive=True))
    texts["argv"] = "".join(" ".join(process.cmdline()) for process in processes)
    with closing(sqlite3.connect(host.data_dir / "journal.sqlite")) as journal:
        texts["journal"] = "\n".join(journal.iterdump())
    texts |= {path.name: path.read_text() for path in host.data_dir.rglob("*.log*")}
    assert "audit" in "".join(texts.values()), "the searched texts must include the log"
    assert [name for name, text in texts.items() if any(secret in text for secret in secrets)] == []
    assert processes[0].rlimit(psutil.RLIMIT_CORE) == (0, 0), "the agent must write no core file"
