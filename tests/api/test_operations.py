"""Cordon, drain and rollouts over HTTP."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from yarl import URL

from agent.domain.events import Event, EventKind
from agent.domain.names import vm_name
from agent.domain.rollout import Phase
from tests.api.real_engine import DIGEST, NOW_S, SERVING

if TYPE_CHECKING:
    from tests.api.conftest import Running

OLD = "sha256:" + "c" * 64


@pytest.mark.parametrize(("verb", "mode"), [("cordon", "cordoned"), ("drain", "draining"), ("uncordon", "open")])
async def test_mode_is_set_and_reported(api: Running, verb: str, mode: str) -> None:
    async with api.tcp.post(f"/v1/host/{verb}", params={"reason": "new disks"}) as response:
        assert response.status == 200
        document = await response.json()
    assert (document["mode"], document["reason"]) == (mode, "new disks")
    await api.engine.reconcile()
    async with api.tcp.get("/v1/host") as response:
        host = await response.json()
    assert host["mode"] == document
    assert host["draining"] == (mode == "draining")
    conditions = {one["type"]: one for one in host["conditions"]}
    assert conditions["Cordoned"]["problem"] == (mode == "cordoned")
    assert conditions["Draining"]["problem"] == (mode == "draining")


async def test_unknown_parameters_are_refused(api: Running) -> None:
    async with api.tcp.post("/v1/host/cordon", params={"why": "x"}) as response:
        assert response.status == 422


async def test_rollout_is_undone_and_retried(api: Running) -> None:
    await api.engine.put(replace(SERVING, previous=OLD))
    async with api.tcp.post("/v1/rollouts/small/undo", params={"reason": "builds fail"}) as response:
        assert response.status == 200
        undone = await response.json()
    assert (undone["phase"], undone["serving"], undone["quarantined"]) == ("rolled-back", OLD, [DIGEST])
    async with api.tcp.post("/v1/rollouts/small/undo") as response:
        assert (response.status, (await response.json())["code"]) == (409, "nothing-to-undo")
    async with api.tcp.post("/v1/rollouts/small/retry") as response:
        assert (await response.json())["phase"] == Phase.PULLING
    async with api.tcp.get("/v1/rollouts") as response:
        (listed,) = (await response.json())["rollouts"]
    assert (listed["pool"], listed["phase"], listed["quarantined"]) == ("small", "pulling", [])


async def test_retry_is_refused_without_a_reason_to_retry(api: Running) -> None:
    async with api.tcp.post("/v1/rollouts/small/retry") as response:
        assert (response.status, (await response.json())["code"]) == (409, "nothing-to-retry")
    async with api.tcp.post("/v1/rollouts/nope/retry") as response:
        assert (response.status, (await response.json())["code"]) == (404, "pool-unknown")


async def test_ended_lease_reports_how_it_ended(api: Running) -> None:
    vm = "hearth-small-1"
    await api.engine.commit(
        Event(EventKind.LEASE_BROKEN, NOW_S, vm=vm, pool="small", lease="l1", cause="exited", detail="it died"),
        Event(EventKind.LEASE_EXPIRED, NOW_S, vm=vm, pool="small", lease="l2"),
    )
    for method in ("GET", "DELETE"):
        async with api.tcp.request(method, "/v1/leases/l1") as response:
            assert response.status == 410
            problem = await response.json()
        assert problem["code"] == "lease-ended"
        assert problem["detail"] == "lease l1 ended: its VM failed: it died"
        assert problem["ending"] == {
            "reason": "broken", "at": "2027-01-15T08:00:00Z", "pool": "small", "vm": vm, "cause": "exited",
            "detail": "it died", "evidence": f"/v1/vms/{vm}/evidence",
        }  # fmt: skip
    async with api.tcp.get("/v1/leases/l2") as response:
        ending = (await response.json())["ending"]
    assert ending["reason"] == "expired"
    assert "evidence" not in ending


async def test_only_evidence_files_are_served(api: Running) -> None:
    name = vm_name("small", "01jx0000000000000000000000")
    folder = api.engine.parts.evidence.root / name
    folder.mkdir(parents=True)
    (folder / "console.log").write_text("<script>kernel panic</script>")
    (folder / "summary.json").write_text("{}")
    (folder.parents[1] / "secret").write_text("secret")
    async with api.tcp.get(f"/v1/vms/{name}/evidence") as response:
        listed = await response.json()
    assert [file["name"] for file in listed["files"]] == ["console.log", "summary.json"]
    assert listed["directory"] == str(folder)
    async with api.tcp.get(listed["files"][0]["path"]) as response:
        assert await response.text() == "<script>kernel panic</script>"
        assert response.headers["Content-Type"].startswith("text/plain")
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    for path in (f"{name}/evidence/..%2F..%2Fsecret", f"{name}/evidence/%2Fetc%2Fpasswd", "..%2F/evidence/secret"):
        async with api.tcp.get(URL(f"/v1/vms/{path}", encoded=True)) as response:
            assert response.status == 404
    async with api.tcp.get("/v1/vms/hearth-small-1/evidence") as response:
        assert (response.status, (await response.json())["code"]) == (404, "evidence-not-found")
