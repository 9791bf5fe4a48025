"""Leases belong to the token that requested them: other lease tokens cannot use them, readers cannot see their ids."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from agent.api.auth import Role, TokenAuthenticator, create_token
from tests.api.conftest import Running, run
from tests.api.real_engine import RealEngine, vm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    import aiohttp

NOW_S = 1000.0
NOBODY: Mapping[str, str] = {}


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, dict[str, str]]:
    """The headers of callers by name, with the role as the name's first part."""
    path = tmp_path / "tokens.json"
    roles = {"lease-a": Role.LEASE, "lease-b": Role.LEASE, "read": Role.READ, "admin": Role.ADMIN}
    return {
        name: {"Authorization": f"Bearer {create_token(path, name, role, now_s=NOW_S)}"} for name, role in roles.items()
    }


@pytest.fixture
async def api(tmp_path: Path, tokens: dict[str, dict[str, str]]) -> AsyncIterator[Running]:
    assert tokens
    authenticator = TokenAuthenticator(tmp_path / "tokens.json", anonymous=Role.READ, clock=lambda: NOW_S)
    async with run(RealEngine(vm("hearth-small-1")), tmp_path, authenticator=authenticator) as running:
        yield running


async def acquire(client: aiohttp.ClientSession, headers: Mapping[str, str], key: str | None = None) -> str:
    body: dict[str, Any] = {"pool": "small", "holder": "job"} | ({"idempotency_key": key} if key else {})
    async with client.post("/v1/leases", json=body, headers=headers) as response:
        assert response.status == 201, await response.text()
        lease_id: str = (await response.json())["id"]
        return lease_id


async def get(client: aiohttp.ClientSession, path: str, headers: Mapping[str, str]) -> Any:
    async with client.get(path, headers=headers) as response:
        assert response.status == 200
        return await response.json()


@pytest.mark.parametrize(
    ("method", "suffix", "body"),
    [("GET", "", None), ("PATCH", "", {"ttl_s": 60}), ("DELETE", "", None), ("POST", "/exec", {"argv": ["true"]})],
)
@pytest.mark.parametrize("name", ["lease-a", "lease-b", "admin"])
async def test_lease_is_used_only_by_its_owner(
    api: Running, tokens: dict[str, dict[str, str]], name: str, method: str, suffix: str, body: object
) -> None:
    lease_id = await acquire(api.tcp, tokens["lease-a"])
    path = f"/v1/leases/{lease_id}{suffix}"
    async with api.tcp.request(method, path, json=body, headers=tokens[name]) as response:
        found = response.status != 404
        assert found or (await response.json(content_type=None))["code"] == "lease-not-found"
    assert found is (name != "lease-b")
    assert len((await get(api.unix, "/v1/vms", NOBODY))["vms"]) == 1


async def test_ended_lease_is_unknown_to_other_tokens(api: Running, tokens: dict[str, dict[str, str]]) -> None:
    lease_id = await acquire(api.tcp, tokens["lease-a"])
    async with api.tcp.delete(f"/v1/leases/{lease_id}", headers=tokens["lease-a"]) as response:
        assert response.status == 204
    for name, status in (("lease-a", 410), ("lease-b", 404), ("admin", 410)):
        async with api.tcp.get(f"/v1/leases/{lease_id}", headers=tokens[name]) as response:
            assert response.status == status


async def test_stream_of_commands_is_refused_to_other_tokens(api: Running, tokens: dict[str, dict[str, str]]) -> None:
    lease_id = await acquire(api.unix, NOBODY)
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
               "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
    async with api.tcp.get(f"/v1/leases/{lease_id}/exec", headers=tokens["lease-b"] | upgrade) as response:
        assert response.status == 404


@pytest.mark.parametrize(
    ("name", "sees"), [("lease-a", True), ("lease-b", False), ("read", True), ("admin", True), ("", False)]
)
async def test_lease_id_is_shown_to_its_owner_and_readers(
    api: Running, tokens: dict[str, dict[str, str]], name: str, *, sees: bool
) -> None:
    lease_id = await acquire(api.tcp, tokens["lease-a"])
    headers = tokens.get(name, NOBODY)
    (listed,) = (await get(api.tcp, "/v1/vms", headers))["vms"]
    detail = await get(api.tcp, f"/v1/vms/{listed['name']}", headers)
    events = (await get(api.tcp, "/v1/events?after=0", headers))["events"]
    async with api.tcp.get("/v1/events?after=0", headers={**headers, "Accept": "text/event-stream"}) as stream:
        async for line in stream.content:
            if line == b"event: lease-granted\n":
                streamed = json.loads((await stream.content.readline()).removeprefix(b"data: "))
                break
    assert listed["lease"]["holder"] == detail["lease"]["holder"] == "job"
    expected = lease_id if sees else None
    assert (listed["lease"]["id"], detail["lease"]["id"], streamed.get("lease")) == (expected,) * 3
    assert {event["lease"] for event in events if event["kind"] == "lease-granted"} == {expected}
    assert (lease_id in json.dumps([listed, detail, events, streamed])) is sees


async def test_idempotency_keys_belong_to_their_token(tmp_path: Path, tokens: dict[str, dict[str, str]]) -> None:
    authenticator = TokenAuthenticator(tmp_path / "tokens.json", clock=lambda: NOW_S)
    engine = RealEngine(vm("hearth-small-1"), vm("hearth-small-2"))
    async with run(engine, tmp_path, authenticator=authenticator) as api:
        first = await acquire(api.tcp, tokens["lease-a"], "key")
        assert await acquire(api.tcp, tokens["lease-a"], "key") == first
        assert await acquire(api.tcp, tokens["lease-b"], "key") != first
