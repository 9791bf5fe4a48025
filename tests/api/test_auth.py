"""Roles for every operation, the life of tokens, TLS, and secrets that are never returned or logged."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import stat
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from agent.api.application import OPERATIONS
from agent.api.auth import (
    Role,
    TokenAuthenticator,
    TokenNameError,
    UnauthenticatedError,
    create_token,
    load_tokens,
    revoke_token,
)
from agent.api.resources.page import FILES
from agent.api.tls import ServerTls, TlsError
from agent.config import ConfigError, TlsConfig, load_config
from agent.telemetry.log import configure
from tests.api.certificates import authority, certificate
from tests.api.conftest import Running, run
from tests.api.real_engine import RealEngine, vm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agent.api.operation import Operation

NOW_S = 1000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "tokens.json"


@pytest.fixture
async def guarded(tmp_path: Path, path: Path) -> AsyncIterator[Running]:
    engine = RealEngine(vm("hearth-small-1"), vm("hearth-small-2"))
    async with run(engine, tmp_path, authenticator=TokenAuthenticator(path, clock=lambda: NOW_S)) as api:
        yield api


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def status(api: Running, operation: Operation, headers: dict[str, str]) -> int:
    url = re.sub(r"{\w+}", "none", operation.path)
    body: dict[str, str] | None = {} if operation.body else None
    async with api.tcp.request(operation.method, url, headers=headers, json=body) as response:
        return response.status


@pytest.mark.parametrize("role", [None, Role.READ, Role.LEASE, Role.ADMIN])
async def test_operation_is_allowed_by_role(guarded: Running, path: Path, role: Role | None) -> None:
    headers = bearer(create_token(path, "t", role, now_s=NOW_S)) if role else {}
    for operation in OPERATIONS:
        answered = await status(guarded, operation, headers)
        allowed = (role or Role.NONE) >= operation.needs
        assert (answered in (401, 403)) is not allowed, operation.id
        assert allowed or answered == (403 if role else 401)


async def test_caller_without_token_may_only_read_by_default(tmp_path: Path, path: Path) -> None:
    """A guest on QEMU's user network reaches this port as 10.0.2.2: it must get no lease and no VM of others."""
    assert load_config(empty_config(tmp_path)).api.auth == "read"
    authenticator = TokenAuthenticator(path, anonymous=Role.READ)
    async with run(RealEngine(vm("hearth-small-1")), tmp_path, authenticator=authenticator) as api:
        for operation in OPERATIONS:
            refused = await status(api, operation, {}) == 401
            assert refused is (operation.needs > Role.READ), operation.id
        headers = bearer(create_token(path, "t", Role.LEASE, now_s=NOW_S))
        body = {"pool": "small", "holder": "j"}
        async with api.tcp.post("/v1/leases", json=body) as response:
            assert "Unix socket" in (await response.json(content_type=None))["remedy"]
        async with api.tcp.post("/v1/leases", json=body, headers=headers) as response:
            assert response.status == 201
        async with api.tcp.get("/v1/host", headers=bearer("hearth_wrong")) as response:
            assert response.status == 401


def empty_config(folder: Path) -> Path:
    (folder / "hearth.toml").touch()
    return folder / "hearth.toml"


async def test_write_is_logged_with_its_caller_and_status(guarded: Running, path: Path) -> None:
    writes = [operation for operation in OPERATIONS if operation.method != "GET"]
    headers = bearer(create_token(path, "controller-1", Role.LEASE, now_s=NOW_S))
    with capture_logs() as logged:
        answered = [await status(guarded, operation, headers) for operation in writes]
        await status(guarded, writes[0], {})
        async with guarded.unix.post("/v1/host/cordon") as response:
            assert response.status == 200
        async with guarded.tcp.get("/v1/host", headers=headers) as response:
            assert response.status == 200
    seen = [line for line in logged if line["event"] == "audit"]
    assert [(line["method"], line["status"]) for line in seen[: len(writes)]] == [
        (operation.method, str(code)) for operation, code in zip(writes, answered, strict=True)
    ]
    assert {(line["caller"], line["role"], line["peer"]) for line in seen[: len(writes)]} == {
        ("controller-1", "lease", "127.0.0.1")
    }
    assert [(line["caller"], line["peer"], line["status"]) for line in seen[len(writes) :]] == [
        ("", "127.0.0.1", "401"), ("socket", "socket", "200"),
    ]  # fmt: skip


def test_writes_need_the_lease_or_admin_role() -> None:
    needs = {operation.id: operation.needs for operation in OPERATIONS}
    assert {name for name, role in needs.items() if role is Role.NONE} == {"livez", "readyz"}
    assert {name for name, role in needs.items() if role is Role.LEASE} == {
        "acquire-lease", "lease", "renew-lease", "release-lease", "exec", "stream-exec",
    }  # fmt: skip
    assert {"put-assignment", "replace-vm", "drain", "evidence-file"} <= {
        name for name, role in needs.items() if role is Role.ADMIN
    }


async def test_unknown_path_needs_a_token(guarded: Running) -> None:
    async with guarded.tcp.get("/v1/secret") as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert (await response.json(content_type=None))["code"] == "unauthenticated"


async def test_open_path_lists_its_methods_without_a_token(guarded: Running) -> None:
    async with guarded.tcp.post("/livez") as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET,HEAD")
    async with guarded.tcp.put("/v1/host") as response:
        assert response.status == 401


async def test_page_and_socket_need_no_token(guarded: Running) -> None:
    for file in FILES:
        async with guarded.tcp.get(file) as response:
            assert response.status == 200
    async with guarded.unix.get("/v1/host") as response:
        assert response.status == 200


async def test_token_is_valid_until_it_expires_or_is_revoked(guarded: Running, path: Path) -> None:
    async def status_with(secret: str) -> int:
        async with guarded.tcp.get("/v1/host", headers=bearer(secret)) as response:
            return response.status

    short = create_token(path, "short", Role.READ, now_s=NOW_S - 60, ttl_s=30)
    good = create_token(path, "good", Role.READ, now_s=NOW_S, ttl_s=30)
    assert [await status_with(good), await status_with(short), await status_with(good[:-1]), await status_with("")] == [
        200,
        401,
        401,
        401,
    ]
    revoke_token(path, "good")
    assert await status_with(good) == 401


@pytest.mark.parametrize("header", ["", "Basic eDp5", "Bearer", "Bearer ", "Token x", "Bearer é"])
def test_header_without_a_valid_token_is_refused(path: Path, header: str) -> None:
    create_token(path, "t", Role.ADMIN, now_s=NOW_S)
    with pytest.raises(UnauthenticatedError):
        TokenAuthenticator(path).caller(header)


def test_token_file_has_no_secret_and_mode_600(path: Path) -> None:
    secret = create_token(path, "t", Role.LEASE, now_s=NOW_S)
    assert secret.startswith("hearth_")
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [(token.name, token.role) for token in load_tokens(path)] == [("t", Role.LEASE)]
    with pytest.raises(TokenNameError, match="already"):
        create_token(path, "t", Role.READ, now_s=NOW_S)
    with pytest.raises(TokenNameError, match="no token 'x'"):
        revoke_token(path, "x")


async def test_token_is_neither_logged_nor_returned(guarded: Running, path: Path, tmp_path: Path) -> None:
    secret = create_token(path, "controller-1", Role.LEASE, now_s=NOW_S)
    logs = configure(path=tmp_path / "log", terminal=None, level="debug")
    seen: list[str] = []
    for method, url, body in (
        ("POST", "/v1/leases", {"pool": "small", "holder": "j"}),
        ("POST", "/v1/leases", {"pool": "none", "holder": "j"}),
        ("PUT", "/v1/assignment", {"pools": {}}),
        ("GET", "/v1/host", None),
        ("GET", "/v1/events", None),
        ("GET", "/metrics", None),
    ):
        async with guarded.tcp.request(method, url, json=body, headers=bearer(secret)) as response:
            seen.append(await response.text() + str(response.headers))
    logs.close()
    log = (tmp_path / "log").read_text()
    assert secret not in "".join(seen) + log
    writes = [line for line in map(json.loads, log.splitlines()) if line.get("method") == "POST"]
    assert [line["caller"] for line in writes] == ["controller-1", "controller-1"]


# TLS


def trusting(ca: Path, client: TlsConfig | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    return context


async def peer_name(port: int, context: ssl.SSLContext) -> str:
    """Return the common name in the certificate that a new connection gets."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    subject: Any = writer.get_extra_info("peercert")["subject"]
    writer.transport.abort()  # a clean end of TLS waits for the server, longer than the event loop of the test may run
    return str(dict(pair[0] for pair in subject)["commonName"])


async def test_tls_listener_refuses_plain_http(tmp_path: Path) -> None:
    ca, files = authority(tmp_path), certificate(tmp_path, "host")
    async with run(RealEngine(), tmp_path, tls=files) as api:
        async with api.tcp.get("/livez", ssl=trusting(ca)) as response:
            assert response.status == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await api.tcp.get("/livez")
        with pytest.raises(aiohttp.ClientError):
            await api.tcp.get(f"http://127.0.0.1:{api.server.port}/livez")


async def test_client_without_certificate_is_refused_with_mutual_tls(tmp_path: Path) -> None:
    ca, files = authority(tmp_path), certificate(tmp_path, "host")
    client = certificate(tmp_path, "client")
    files = TlsConfig(certificate=files.certificate, key=files.key, client_ca=ca)
    async with run(RealEngine(), tmp_path, tls=files) as api:
        async with api.tcp.get("/livez", ssl=trusting(ca, client)) as response:
            assert response.status == 200
        with pytest.raises(aiohttp.ClientError):
            await api.tcp.get("/livez", ssl=trusting(ca))


async def test_renewed_certificate_is_loaded_unless_it_is_invalid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.api.tls.CHECK_INTERVAL_S", 0.02)
    ca, files = authority(tmp_path), certificate(tmp_path, "host", subject="old")
    async with asyncio.timeout(20), run(RealEngine(), tmp_path, tls=files) as api:
        context = trusting(ca)
        assert await peer_name(api.server.port, context) == "old"
        certificate(tmp_path, "host", subject="new")
        while await peer_name(api.server.port, context) != "new":
            pass
        with capture_logs() as logged:
            files.key.write_text("garbage")
            while not any(line["event"] == "tls-not-renewed" for line in logged):
                assert await peer_name(api.server.port, context) == "new"
        assert await peer_name(api.server.port, context) == "new"


async def test_changed_client_authority_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.api.tls.CHECK_INTERVAL_S", 0.02)
    ca, files = authority(tmp_path), certificate(tmp_path, "host")
    old, _ = certificate(tmp_path, "old"), authority(tmp_path, "other")
    new, clients = certificate(tmp_path, "new", ca="other"), tmp_path / "clients.pem"
    clients.write_bytes(ca.read_bytes())
    files = TlsConfig(certificate=files.certificate, key=files.key, client_ca=clients)

    async def is_accepted(api: Running, client: TlsConfig) -> bool:
        try:
            async with api.tcp.get("/livez", ssl=trusting(ca, client), headers={"Connection": "close"}) as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async with asyncio.timeout(20), run(RealEngine(), tmp_path, tls=files) as api:
        assert (await is_accepted(api, old), await is_accepted(api, new)) == (True, False)
        clients.write_bytes((tmp_path / "other.pem").read_bytes())
        while not await is_accepted(api, new):
            pass
        assert not await is_accepted(api, old)


async def test_unreadable_certificate_is_named(tmp_path: Path) -> None:
    files = TlsConfig(certificate=tmp_path / "none.pem", key=tmp_path / "none.key")
    with pytest.raises(TlsError, match=r"none\.pem.*\[api\.tls\]"):
        ServerTls.open(files)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[api]\nhost = "0.0.0.0"\n', "other machines can connect to 0.0.0.0"),
        ('[api]\nhost = "10.0.0.5"\nauth = "token"\n', "certificate and key"),
        ('[api]\nhost = "::"\n[api.tls]\ncertificate = "c"\nkey = "k"\n', 'auth = "token"'),
    ],
)
def test_public_host_is_refused_without_tokens_and_tls(tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "hearth.toml"
    config.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(config)


def test_public_host_is_accepted_with_tokens_and_tls(tmp_path: Path) -> None:
    config = tmp_path / "hearth.toml"
    config.write_text('[api]\nhost = "0.0.0.0"\nauth = "token"\n[api.tls]\ncertificate = "c.pem"\nkey = "k.pem"\n')
    tls = load_config(config).api.tls
    assert tls is not None
    assert (tls.certificate, tls.key, tls.client_ca) == (tmp_path / "c.pem", tmp_path / "k.pem", None)


async def test_tokens_created_at_the_same_time_are_all_kept(path: Path) -> None:
    def create(number: int) -> str:
        return create_token(path, f"t{number}", Role.READ, now_s=NOW_S)

    await asyncio.gather(*(asyncio.to_thread(create, number) for number in range(12)))
    assert {token.name for token in load_tokens(path)} == {f"t{number}" for number in range(12)}
