"""A lease keeps what its holder was promised when its pool is renamed, changed or removed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.api.conftest import Running, run
from tests.api.real_engine import POOL, RealEngine, vm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PROBE = {"kind": "agent", "period_s": 0.05, "timeout_s": 1.0, "failures": 2}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Running]:
    engine = RealEngine(vm("hearth-small-1"), runs=True)
    engine.pool = {**POOL, "warm": 1, "lease_max_ttl_s": 5000, "probes": [PROBE]}
    async with run(engine, tmp_path) as running:
        yield running


async def assign(api: Running, pools: dict[str, Any]) -> None:
    async with api.unix.put("/v1/assignment", json={"pools": pools}, headers={"If-Match": "*"}) as response:
        assert response.status == 200, await response.text()


async def acquire(api: Running) -> dict[str, Any]:
    async with api.unix.post("/v1/leases", json={"pool": "small", "holder": "job", "wait_s": 20}) as response:
        assert response.status == 201, await response.text()
        lease: dict[str, Any] = await response.json()
        return lease


@pytest.mark.parametrize(
    "pools", [{}, {"other": dict(POOL)}, {"small": {**POOL, "lease_ttl_s": 10, "lease_max_ttl_s": 10}}]
)
async def test_lease_is_renewed_and_used_as_promised(api: Running, pools: dict[str, Any]) -> None:
    lease = await acquire(api)
    path = f"/v1/leases/{lease['id']}"
    await assign(api, pools)
    for ttl_s, expected in ((4000, 4000), (9000, 5000)):
        async with api.unix.patch(path, json={"ttl_s": ttl_s}) as response:
            assert response.status == 200, await response.text()
            assert (await response.json())["ttl_s"] == expected
    async with api.unix.post(f"{path}/exec", json={"argv": ["sh", "-c", "exit 3"]}) as response:
        assert (await response.json())["exit_code"] == 3
    async with api.unix.get(path) as response:
        assert (await response.json())["address"] == lease["address"]
    async with api.unix.delete(path) as response:
        assert response.status == 204


async def test_unhealthy_vm_is_reported_after_its_pool_was_removed(api: Running) -> None:
    lease = await acquire(api)
    await assign(api, {})
    process = api.engine.guests.host.vms[lease["vm"]].process
    assert process is not None
    process.guest.up.clear()  # the guest hangs
    async with asyncio.timeout(20):
        while True:
            async with api.unix.get(f"/v1/leases/{lease['id']}") as response:
                if (await response.json())["unhealthy"] is not None:
                    return
            await asyncio.sleep(0.02)
