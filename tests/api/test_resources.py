"""Every resource over sockets: its responses, and its effects on the engine."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.api.documents import COUNTED_STATES, DISK_STEP_BYTES
from agent.api.resources.health import breakers
from agent.config import MAX_POOLS
from agent.domain.breaker import HOST_KEY, Breaker, BreakerKey, Scope
from agent.domain.model import Cause, Failure, HostLimits
from agent.domain.names import vm_name
from agent.domain.states import VmState
from agent.domain.world import World
from agent.images.contract import PullProgress
from tests.api.real_engine import COMING, DIGEST, NOW_S, vm

if TYPE_CHECKING:
    from tests.api.conftest import Running

LEASE = {"pool": "small", "holder": "job-1"}


async def get(api: Running, path: str, status: int = 200) -> dict[str, Any]:
    async with api.tcp.get(path) as response:
        assert response.status == status
        document: dict[str, Any] = await response.json(content_type=None)
        return document


async def test_livez_fails_without_reconcile_passes(api: Running) -> None:
    api.engine.set_heartbeat_age(0.5)
    assert await get(api, "/livez") == {"ok": True, "heartbeat_age_s": pytest.approx(0.5, abs=0.4)}
    api.engine.set_heartbeat_age(61.0)
    assert await get(api, "/livez", 503) == {"ok": False, "heartbeat_age_s": pytest.approx(61.0, abs=0.4)}


async def test_readyz_names_failed_checks_with_reasons(api: Running) -> None:
    assert (await get(api, "/readyz"))["ok"] is True
    api.engine.guests.inventory_error = "connection refused"
    await api.engine.observe()
    answer = await get(api, "/readyz", 503)
    assert answer["ok"] is False
    (failed,) = (check for check in answer["checks"] if not check["ok"])
    assert failed == {"name": "hypervisor", "ok": False, "reason": "connection refused"}


async def test_metrics_show_the_world_at_the_scrape(api: Running) -> None:
    await get(api, "/v1/host")
    await api.engine.move_vm("hearth-small-2", VmState.READY)
    async with api.tcp.get("/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        families = {family.name: family for family in text_string_to_metric_families(await response.text())}
    vms = {(s.labels["pool"], s.labels["state"]): s.value for s in families["hearth_vms"].samples}
    slots = {s.labels["state"]: s.value for s in families["hearth_slots"].samples}
    requests = families["hearth_api_request_duration_seconds"].samples
    assert {key: count for key, count in vms.items() if count} == {("small", "ready"): 2}
    assert slots == {"starting": 0, "ready": 2, "leased": 0, "stopping": 0, "foreign": 0, "free": 0}
    assert any(s.labels.get("route") == "/v1/host" and s.labels["status"] == "200" for s in requests)


def test_breakers_are_counted_by_scope_and_state() -> None:
    reference = BreakerKey(Scope.REFERENCE, "registry/small:v1")
    vm_key, reset = BreakerKey(Scope.VM, vm_name("small", f"{1:026d}")), BreakerKey(Scope.IMAGE, "reset")
    keys = (HOST_KEY, BreakerKey(Scope.IMAGE, DIGEST), reference, vm_key, reset)
    known = {key: Breaker(key, failures=key != reset, open_until_s=NOW_S + 9) for key in keys}
    known[reference] = Breaker(reference, failures=1, open_until_s=NOW_S)
    counts = breakers(World(NOW_S, 0.5, HostLimits(slots=2, cpus=4.0, memory_mib=4096), breakers=known))
    assert {key: count for key, count in counts.items() if count} == {
        ("host", "open"): 1, ("image", "open"): 1, ("vm", "open"): 1, ("reference", "closed"): 1,
    }  # fmt: skip


async def test_host_document_counts_slots_and_startable_vms(api: Running) -> None:
    host = await get(api, "/v1/host")
    assert host["host"]["name"] == "mac-1"
    assert host["slots"] == {
        "total": 2, "used": 2, "starting": 1, "ready": 1, "leased": 0, "stopping": 0, "foreign": 0, "free": 0,
    }  # fmt: skip
    assert host["memory_mib"] == {"total": 8192, "reserved": 4096, "allocatable": 4096, "used": 1024, "free": 3072}
    assert host["disk_bytes"]["free"] == 58 << 30
    (pool,) = host["pools"]
    assert (pool["warm"], pool["ready"], pool["starting"], pool["rollout"]["serving"]) == (2, 1, 1, DIGEST)
    assert pool["startable"] == {"count": 0, "limit": "slots"}
    assert {condition["type"] for condition in host["conditions"]} >= {"Ready", "DiskPressure", "Draining"}
    assert host["assignment"] == {
        "source": "api", "etag": api.engine.parts.assignments.held.etag, "error": "",
    }  # fmt: skip


async def test_host_document_counts_vms_of_every_state(api: Running) -> None:
    assert set(COUNTED_STATES) == set(VmState) - {VmState.GONE}
    await api.engine.put(*(vm(f"hearth-small-{state}", state) for state in COUNTED_STATES))
    host = await get(api, "/v1/host")
    (pool,) = host["pools"]
    assert {kind: pool[kind] for kind in ("ready", "leased", "starting", "stopping", "standby")} == {
        "ready": 2, "leased": 1, "starting": 4, "stopping": 3, "standby": 1,
    }  # fmt: skip
    assert host["slots"]["used"] == 10
    async with api.tcp.get("/metrics") as response:
        assert 'hearth_vms{pool="small",state="standby"} 1.0' in await response.text()


async def test_host_document_rounds_free_space(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.api.host_document_cache.FRESH_S", 0.0)
    async with api.tcp.get("/v1/host") as response:
        etag = response.headers["ETag"]
    for free_bytes, status in (((60 << 30) + DISK_STEP_BYTES - 1, 304), ((60 << 30) - 1, 200)):
        api.engine.free_bytes = free_bytes
        await api.engine.observe()
        async with api.tcp.get("/v1/host", headers={"If-None-Match": etag}) as response:
            assert response.status == status
    disk = (await get(api, "/v1/host"))["disk_bytes"]
    assert disk["free"] == (58 << 30) - DISK_STEP_BYTES
    assert disk["used"] + disk["free"] + disk["reserved"] == disk["total"]


async def test_host_document_is_never_negative_when_overcommitted(api: Running) -> None:
    api.engine.guests.host.foreign.update({f"foreign-{number}": True for number in range(5)})
    api.engine.free_bytes = 0
    await api.engine.observe()
    await api.engine.put(*(vm(f"hearth-small-x{number}", VmState.LEASED) for number in range(20)))
    host = await get(api, "/v1/host")
    figures = [host["slots"], host["cpus"], host["memory_mib"], host["disk_bytes"]]
    assert all(value >= 0 for figure in figures for value in figure.values())
    assert host["slots"]["used"] == 27
    assert (host["slots"]["free"], host["cpus"]["free"], host["disk_bytes"]["free"]) == (0, 0, 0)


async def test_host_document_has_identity_and_vitals(api: Running) -> None:
    document = await get(api, "/v1/host")
    assert document["host"].keys() >= {"machine_id", "boot_id", "model", "chip", "serial", "hardware_uuid"}
    assert document["cores"].keys() == {"performance", "efficiency"}
    assert document["vitals"] == {"memory_pressure": "normal", "heat": "nominal", "purgeable_disk_bytes": None}


async def test_unchanged_host_document_is_not_sent_again(api: Running) -> None:
    async with api.tcp.get("/v1/host") as response:
        etag = response.headers["ETag"]
    async with api.tcp.get("/v1/host", headers={"If-None-Match": etag}) as response:
        assert response.status == 304
        assert response.headers["ETag"] == etag
        assert await response.read() == b""
    await api.engine.move_vm("hearth-small-2", VmState.READY)
    async with api.tcp.get("/v1/host", headers={"If-None-Match": etag}) as response:
        assert response.status == 200
        assert response.headers["ETag"] != etag


async def test_pull_progress_changes_the_host_document(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.api.host_document_cache.FRESH_S", 0.0)
    pull = PullProgress("registry/small:v2", COMING, 1000, 100, 100, 50.0, 18.0)
    api.engine.images.pulling = (pull,)
    first = await get(api, "/v1/host")
    api.engine.images.pulling = (replace(pull, done_bytes=900),)
    second = await get(api, "/v1/host")
    done = [
        image["progress"]["done_bytes"] for host in (first, second) for image in host["images"] if image["progress"]
    ]
    assert done == [100, 900]


async def test_images_include_running_pulls(api: Running) -> None:
    api.engine.images.pulling = (PullProgress("registry/small:v2", COMING, 1000, 100, 80, 50.0, 18.0),)
    present, pulled = (await get(api, "/v1/images"))["images"]
    assert (present["digest"], present["state"], present["pools"], present["progress"]) == (
        DIGEST,
        "present",
        ["small"],
        None,
    )
    assert (pulled["digest"], pulled["state"], pulled["references"]) == (COMING, "pulling", ["registry/small:v2"])
    assert pulled["progress"] == {
        "total_bytes": 1000, "done_bytes": 100, "fetched_bytes": 80, "rate_bytes_per_s": 50.0, "eta_s": 18.0,
    }  # fmt: skip


async def test_vms_are_listed_oldest_first_with_details(api: Running) -> None:
    listed = (await get(api, "/v1/vms"))["vms"]
    assert [item["name"] for item in listed] == ["hearth-small-1", "hearth-small-2"]
    one = await get(api, "/v1/vms/hearth-small-1")
    assert one["address"] == {"host": "127.0.0.1", "ports": {"22": 40022, "8080": 48080}}
    assert one["probes"][0]["outcome"] == "pass"
    assert one["created_at"] == "2027-01-15T07:58:30Z"


async def test_hung_hypervisor_delays_responses_only_briefly(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.engine.guests.ADDRESS_TIMEOUT_S", 0.05)
    api.engine.guests.address_hangs = True
    async with asyncio.timeout(2):
        assert (await get(api, "/v1/vms/hearth-small-1"))["address"] is None
        async with api.tcp.post("/v1/leases", json=LEASE) as response:
            assert response.status == 201
            assert (await response.json())["address"] is None


async def test_deleted_vm_fails_as_requested(api: Running) -> None:
    async with api.tcp.delete("/v1/vms/hearth-small-1", params={"reason": "odd noises"}) as response:
        assert response.status == 202
        assert (await response.json())["state"] == "failed"
    failure = api.engine.vms["hearth-small-1"].failure
    assert failure == Failure(Cause.REQUESTED, "odd noises", NOW_S)
    await api.engine.reconcile()
    assert api.engine.vms["hearth-small-1"].state is VmState.STOPPING


async def test_lease_is_claimed_renewed_and_released(api: Running) -> None:
    async with api.unix.post("/v1/leases", json={**LEASE, "ttl_s": 60}) as response:
        assert response.status == 201
        lease = await response.json()
        assert response.headers["Location"] == f"/v1/leases/{lease['id']}"
    assert (lease["vm"], lease["holder"], lease["ttl_s"]) == ("hearth-small-1", "job-1", 60)
    assert lease["address"]["ports"]["22"] == 40022
    assert (await get(api, f"/v1/leases/{lease['id']}")) == lease
    assert (await get(api, "/v1/vms/hearth-small-1"))["lease"]["holder"] == "job-1"
    vm = api.engine.vms["hearth-small-1"]
    await api.engine.put(replace(vm, reported_failure=Failure(Cause.DAMAGED, "its disk is gone", NOW_S)))
    unhealthy = (await get(api, f"/v1/leases/{lease['id']}"))["unhealthy"]
    assert (unhealthy["cause"], unhealthy["reason"]) == ("damaged", "its disk is gone")
    async with api.tcp.patch(f"/v1/leases/{lease['id']}", json={"ttl_s": 120}) as response:
        assert (await response.json())["ttl_s"] == 120
    async with api.tcp.patch(f"/v1/leases/{lease['id']}", json={"ttl_s": 5e-324}) as response:
        assert (response.status, api.engine.leases[lease["id"]].ttl_s) == (422, 120)
    async with api.tcp.delete(f"/v1/leases/{lease['id']}") as response:
        assert response.status == 204
    assert api.engine.vms["hearth-small-1"].state is VmState.STOPPING
    ended = await get(api, f"/v1/leases/{lease['id']}", 410)
    assert (ended["code"], ended["ending"]["reason"]) == ("lease-ended", "released")


async def test_command_runs_only_in_the_guest_of_a_lease(api: Running) -> None:
    async with api.tcp.post("/v1/leases", json=LEASE) as response:
        path = f"/v1/leases/{(await response.json())['id']}/exec"
    async with api.tcp.post(path, json={"argv": ["printf", "a\\377"]}) as response:
        assert await response.json() == {"exit_code": 0, "stdout": "Yf8=", "stderr": "", "truncated": False}
    async with api.tcp.post(path, json={"argv": ["sleep", "9"], "timeout_s": 0.05}) as response:
        assert response.status == 502
        assert (await response.json(content_type=None))["code"] == "guest-error"
    for bad in ([], [""] * 1001, ["a\0b"], "ls"):
        async with api.tcp.post(path, json={"argv": bad}) as response:
            assert response.status == 422
    async with api.tcp.post("/v1/leases/none/exec", json={"argv": ["true"]}) as response:
        assert response.status == 404
    assert len(api.engine.guests.executed) == 2


async def test_idempotency_key_returns_the_same_lease(api: Running) -> None:
    body = {**LEASE, "idempotency_key": "k1"}
    async with api.tcp.post("/v1/leases", json=body) as one, api.tcp.post("/v1/leases", json=body) as two:
        assert (await one.json())["id"] == (await two.json())["id"]
    async with api.tcp.post("/v1/leases", json={**body, "holder": "other"}) as response:
        assert response.status == 409
        assert (await response.json())["code"] == "lease-conflict"


async def test_lease_request_waits_for_a_ready_vm(api: Running) -> None:
    async with api.tcp.post("/v1/leases", json=LEASE):
        pass
    waiting = asyncio.create_task(api.tcp.post("/v1/leases", json={**LEASE, "wait_s": 30}))
    await api.engine.wait_for_request()
    assert (await get(api, "/v1/host"))["pools"][0]["waiting"] == 1
    await api.engine.move_vm("hearth-small-2", VmState.READY)
    async with asyncio.timeout(5), await waiting as response:
        assert (await response.json())["vm"] == "hearth-small-2"


async def test_lease_request_ends_when_its_client_disconnects(api: Running) -> None:
    await api.engine.move_vm("hearth-small-1", VmState.STOPPING)
    waiting = asyncio.create_task(api.tcp.post("/v1/leases", json={**LEASE, "wait_s": 60}))
    await api.engine.wait_for_request()
    waiting.cancel()
    async with asyncio.timeout(5):
        await api.engine.request_refused.wait()
    assert not api.engine.parts.view.queue.requests
    assert not api.engine.leases


async def test_lease_is_released_when_its_client_disconnected(api: Running) -> None:
    api.engine.guests.address_hangs = True
    asking = asyncio.create_task(api.tcp.post("/v1/leases", json=LEASE))
    async with asyncio.timeout(5):
        await api.engine.guests.address_requested.wait()
        asking.cancel()
        await api.engine.wait_until(lambda: not api.engine.leases)
    assert not api.engine.leases


async def test_refused_lease_has_retry_after(api: Running) -> None:
    await api.engine.move_vm("hearth-small-1", VmState.STOPPING)
    async with api.tcp.post("/v1/leases", json=LEASE) as response:
        assert response.status == 503
        assert response.headers["Retry-After"] == "5"
        problem = await response.json(content_type=None)
    assert problem["code"] == "no-vm-free"
    assert "small" in problem["detail"]
    assert problem["remedy"]


async def test_assignment_is_read_and_replaced(api: Running) -> None:
    async with api.tcp.get("/v1/assignment") as response:
        etag, document = response.headers["ETag"], await response.json()
    document["pools"]["small"]["warm"] = 1
    async with api.tcp.put("/v1/assignment", json=document, headers={"If-Match": etag}) as response:
        assert response.status == 200
        assert response.headers["ETag"] != etag
    assert (await get(api, "/v1/assignment"))["pools"]["small"]["warm"] == 1
    for stale in (etag, 'W/"1"', '"x", "y"'):
        async with api.tcp.put("/v1/assignment", json=document, headers={"If-Match": stale}) as response:
            assert response.status == 412
            assert (await response.json(content_type=None))["code"] == "assignment-conflict"
    document["pools"]["small"] |= {"warm": 1.0, "ports": [22.0]}
    async with api.tcp.put("/v1/assignment", json=document) as response:
        told = (await response.json())["pools"]["small"]
    assert (told["warm"], told["ports"]) == (1, [22]), "JSON has one kind of number"
    async with api.tcp.put("/v1/assignment", json={"pools": {}}, headers={"If-Match": "*"}) as response:
        assert response.status == 200
    assert (await get(api, "/v1/assignment")) == {"pools": {}}


async def test_invalid_assignment_names_the_key(api: Running) -> None:
    bad = {"pools": {"small": {"image": "x", "warm": 3, "max": 2}}}
    async with api.tcp.put("/v1/assignment", json=bad) as response:
        assert response.status == 422
        problem = await response.json(content_type=None)
    assert problem["code"] == "bad-configuration"
    assert "pools.small" in problem["detail"]
    assert "raise max or lower warm" in problem["detail"]
    many = {"pools": {f"p{number}": {"image": "x"} for number in range(MAX_POOLS + 1)}}
    async with api.tcp.put("/v1/assignment", json=many) as response:
        assert response.status == 422
        detail = (await response.json(content_type=None))["detail"]
    assert f"pools: {MAX_POOLS + 1} pools are more than the {MAX_POOLS} of one host: divide them over hosts" in detail
    assert (await get(api, "/v1/assignment"))["pools"]["small"]["warm"] == 2


async def test_only_one_of_several_conditional_writes_succeeds(api: Running) -> None:
    """Each client read the same assignment: a second success would undo the first one unnoticed."""

    async def put(pool: str, etag: str) -> int:
        body = {"pools": {pool: {"image": "oci-layout:/images:v1"}}}
        async with api.tcp.put("/v1/assignment", json=body, headers={"If-Match": etag}) as response:
            status: int = response.status
            return status

    for turn in range(20):
        async with api.tcp.get("/v1/assignment") as response:
            etag = response.headers["ETag"]
        statuses = await asyncio.gather(*(put(f"p{turn}-{number}", etag) for number in range(4)))
        assert sorted(statuses) == [200, 412, 412, 412]
        assert set((await get(api, "/v1/assignment"))["pools"]) == {f"p{turn}-{statuses.index(200)}"}
