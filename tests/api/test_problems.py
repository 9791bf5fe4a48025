"""Every invalid request is answered with problem details, a stable code and a request id."""

from __future__ import annotations

import asyncio
import io
import json
import re
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from agent.api.application import MAX_BODY_BYTES
from agent.api.problems import STATUS_BY_CODE

if TYPE_CHECKING:
    import aiohttp

    from tests.api.conftest import Running

JSON = {"Content-Type": "application/json"}


async def problem(response: aiohttp.ClientResponse, status: int, code: str) -> dict[str, Any]:
    assert response.status == status
    assert response.headers["Content-Type"].startswith("application/problem+json")
    document: dict[str, Any] = json.loads(await response.read())
    assert (document["status"], document["code"]) == (status, code)
    assert document["request_id"] == response.headers["X-Request-ID"]
    return document


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing/here", 404, "not-found"),
        ("GET", "/v1/vms/hearth-small-9", 404, "vm-not-found"),
        ("DELETE", "/v1/vms/hearth-small-9", 404, "vm-not-found"),
        ("GET", "/v1/leases/none", 404, "lease-not-found"),
        ("DELETE", "/v1/leases/none", 404, "lease-not-found"),
        ("PUT", "/v1/host", 405, "method-not-allowed"),
        ("PATCH", "/v1/host", 405, "method-not-allowed"),
        ("GET", f"/v1/events?after={2**63}", 422, "invalid-request"),
        ("DELETE", "/v1/vms/hearth-small-1?because=x", 422, "invalid-request"),
        ("DELETE", "/v1/vms/hearth-small-1?reason=a&reason=b", 422, "invalid-request"),
        ("DELETE", "/v1/vms/hearth-small-1?reason=%00", 422, "invalid-request"),
    ],
)
async def test_unknown_path_or_parameter_is_refused(
    api: Running, method: str, path: str, status: int, code: str
) -> None:
    async with api.tcp.request(method, path) as response:
        document = await problem(response, status, code)
        assert document["detail"]
        assert status != 405 or "GET" in response.headers["Allow"]
    assert all(vm.failure is None for vm in api.engine.vms.values())


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        (b'{"pool": "small"', 400, "malformed-json", "line 1"),
        (b"\xff\xfe", 400, "malformed-json", ""),
        (b"", 400, "malformed-json", ""),
        (b"[" * 100_000, 400, "malformed-json", ""),
        (b'{"pool":"small","holder":"j","wait_s":NaN}', 400, "malformed-json", ""),
        (b"[]", 422, "invalid-request", ""),
        (b'{"pool":"small"}', 422, "invalid-request", "/holder"),
        (b'{"pool":"small","holder":"j","tll_s":5}', 422, "invalid-request", "/tll_s"),
        (b'{"pool":"small","holder":"j","ttl_s":"5"}', 422, "invalid-request", "/ttl_s"),
        (b'{"pool":"small","holder":"j","ttl_s":-5}', 422, "invalid-request", "/ttl_s"),
        (b'{"pool":"small","holder":"j","ttl_s":5e-324}', 422, "invalid-request", "/ttl_s"),
        (b'{"pool":"small","holder":"j","ttl_s":0.999}', 422, "invalid-request", "/ttl_s"),
        (b'{"pool":"small","holder":"j","wait_s":1e9}', 422, "invalid-request", "/wait_s"),
        (b'{"pool":"../etc","holder":"j"}', 422, "invalid-request", "/pool"),
        (b'{"pool":"small","holder":"a\\u001b[2J"}', 422, "invalid-request", "/holder"),
        (b'{"pool":"other","holder":"j"}', 404, "pool-unknown", "other"),
    ],
)
async def test_invalid_body_is_refused(api: Running, body: bytes, status: int, code: str, message: str) -> None:
    async with api.tcp.post("/v1/leases", data=body, headers=JSON) as response:
        document = await problem(response, status, code)
    assert message in json.dumps(document)
    assert not api.engine.leases


async def test_invalid_fields_are_all_named(api: Running) -> None:
    async with api.tcp.post("/v1/leases", json={"pool": 1, "odd/name": 2}) as response:
        document = await problem(response, 422, "invalid-request")
    assert {error["pointer"] for error in document["errors"]} == {"/pool", "/holder", "/odd~1name"}


async def test_body_without_json_type_is_refused(api: Running) -> None:
    async with api.tcp.post("/v1/leases", data=b'{"pool":"small","holder":"j"}') as response:
        await problem(response, 415, "unsupported-media-type")


async def test_large_body_is_refused(api: Running) -> None:
    async with api.tcp.post("/v1/leases", data=io.BytesIO(b" " * (MAX_BODY_BYTES + 1)), headers=JSON) as response:
        await problem(response, 413, "request-entity-too-large")


async def test_unfinished_body_times_out(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.api.handler_context.BODY_TIMEOUT_S", 0.05)
    head = (
        b"POST /v1/leases HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    )
    reader, writer = await asyncio.open_unix_connection(str(api.socket))
    with closing(writer):
        writer.write(head)
        async with asyncio.timeout(5):
            answer = await reader.readuntil(b"}")
    assert b" 408 " in answer.splitlines()[0]
    assert b"body-timeout" in answer


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "10.0.0.1", "127.0.0.1.evil.example"])
async def test_foreign_host_header_is_refused(api: Running, host: str) -> None:
    async with api.tcp.get("/v1/host", headers={"Host": host}) as response:
        await problem(response, 421, "host-refused")
    async with api.unix.get("/v1/host", headers={"Host": host}) as response:
        assert response.status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
async def test_foreign_origin_cannot_write(api: Running, origin: str) -> None:
    body = {"pool": "small", "holder": "page"}
    async with api.tcp.post("/v1/leases", json=body, headers={"Origin": origin}) as response:
        await problem(response, 403, "origin-refused")
    own = f"http://127.0.0.1:{api.server.port}"
    async with api.tcp.post("/v1/leases", json=body, headers={"Origin": own}) as response:
        assert response.status == 201


async def test_unexpected_error_response_has_only_an_id(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(api.engine.real, "readiness", broken)
    with capture_logs() as logged:
        async with api.tcp.get("/readyz", headers={"X-Request-ID": "mine-1"}) as response:
            document = await problem(response, 500, "internal-server-error")
    assert document["request_id"] == "mine-1"
    assert "secret" not in json.dumps(document)
    assert [line["event"] for line in logged if line["log_level"] == "error"] == ["api-error"]


async def test_invalid_request_id_is_replaced(api: Running) -> None:
    async with api.tcp.get("/livez", headers={"X-Request-ID": "a b;c" * 50}) as response:
        assert re.fullmatch(r"[0-9a-f]{10}-1", response.headers["X-Request-ID"])


async def test_server_header_hides_the_library(api: Running) -> None:
    async with api.tcp.get("/livez") as one, api.tcp.get("/nothing") as two:
        assert one.headers["Server"] == two.headers["Server"] == "hearth"


def test_mapped_statuses_are_errors() -> None:
    assert all(400 <= status <= 599 for status in STATUS_BY_CODE.values())
