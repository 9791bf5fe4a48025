"""Registries as they are: compressed answers, HEAD without support, single refusals, pages instead of lists.

Each case is a middleware in front of a registry that works otherwise.
"""

from __future__ import annotations

import gzip
import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from agent.config import RegistryConfig
from agent.images.download import TransferTools
from agent.images.errors import RegistryDeniedError, RegistryError, TransferError
from agent.images.liblz4 import best_codec
from agent.images.manifest import Blob, digest_of
from agent.images.push import Pusher
from agent.images.reference import parse_reference
from agent.images.referrers import attach
from agent.images.repositories import Repositories
from agent.images.sources.layout import OciLayout
from agent.images.vmconfig import Hardware
from tests.images.certificates import certificate, server_context
from tests.images.disks import QUICK, push_layout, sha256_of, write_disk
from tests.images.faulty_registry import FaultyRegistry, run_faulty
from tests.images.token_server import TokenServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor
    from pathlib import Path

    from agent.images.sources.contract import Repository
    from tests.images.conftest import MakeService

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

CONTENT = b"content" * 10
BLOB = Blob(digest_of(CONTENT), len(CONTENT))


@pytest.fixture
async def loaded(tmp_path: Path, disk: Path, executor: Executor) -> FaultyRegistry:
    """A registry with one image, to be run with a middleware."""
    await push_layout(disk, tmp_path / "layout", executor)
    registry = FaultyRegistry()
    registry.load(tmp_path / "layout")
    return registry


async def pull_and_compare(registry: FaultyRegistry, make_service: MakeService, disk: Path, **login: str) -> None:
    images = await make_service(registry.host, registry=RegistryConfig.model_validate({"insecure": True, **login}))
    digest = await images.resolve(registry.reference())
    await images.pull(registry.reference(), digest)
    assert sha256_of((await images.local(digest)).disk) == sha256_of(disk)


# -- compressed answers


def compress(*, always: bool) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
    """Return a middleware that compresses bodies, `always` or only for clients that accept it, as nginx does."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        accepts = "gzip" in request.headers.get("Accept-Encoding", "")
        if (always or accepts) and isinstance(response, web.Response) and isinstance(response.body, bytes):
            headers = {**response.headers, "Content-Encoding": "gzip"}
            headers.pop("Content-Length", None)
            return web.Response(status=response.status, body=gzip.compress(response.body), headers=headers)
        return response

    return middleware


@pytest.mark.parametrize("always", [True, False])
async def test_any_answer_may_be_compressed(
    always: bool, loaded: FaultyRegistry, make_service: MakeService, disk: Path
) -> None:
    tokens = TokenServer()
    async with run_faulty(loaded, compress(always=always), tokens.middleware):
        await pull_and_compare(loaded, make_service, disk, username=tokens.user, password=tokens.password)


async def test_compressed_error_is_readable(loaded: FaultyRegistry, make_service: MakeService) -> None:
    @web.middleware
    async def fail(request: web.Request, handler: Handler) -> web.StreamResponse:
        del request, handler
        return web.Response(status=418, text="the name is reserved")

    async with run_faulty(loaded, compress(always=True), fail):
        images = await make_service(loaded.host)
        with pytest.raises(RegistryError, match="the name is reserved"):
            await images.resolve(loaded.reference())


async def test_compressed_range_falls_back_to_the_whole_blob(
    tmp_path: Path, make_service: MakeService, monkeypatch: pytest.MonkeyPatch, executor: Executor
) -> None:
    monkeypatch.setattr("agent.images.download.WHOLE_BYTES", 1 << 10)
    disk = write_disk(tmp_path / "d.img", mib=3)
    await push_layout(disk, tmp_path / "layout", executor)
    registry = FaultyRegistry()
    registry.load(tmp_path / "layout")
    async with run_faulty(registry, compress(always=True)):
        await pull_and_compare(registry, make_service, disk)


async def test_token_in_many_packets_is_read_whole(
    loaded: FaultyRegistry, make_service: MakeService, disk: Path
) -> None:
    tokens = TokenServer(padding="x" * 40_000)

    @web.middleware
    async def drip(request: web.Request, handler: Handler) -> web.StreamResponse:
        whole = await handler(request)
        if request.path != "/token" or not isinstance(whole, web.Response) or not isinstance(whole.body, bytes):
            return whole
        response = web.StreamResponse()
        await response.prepare(request)
        for start in range(0, len(whole.body), 10_000):
            await response.write(whole.body[start : start + 10_000])
        return response

    async with run_faulty(loaded, drip, tokens.middleware):
        await pull_and_compare(loaded, make_service, disk, username=tokens.user, password=tokens.password)


# -- HEAD


def answer_head(status: int) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        return web.Response(status=status) if request.method == "HEAD" else await handler(request)

    return middleware


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 500, 501])
async def test_failed_head_of_a_manifest_decides_nothing(
    status: int, loaded: FaultyRegistry, make_service: MakeService, disk: Path
) -> None:
    async with run_faulty(loaded, answer_head(status)):
        await pull_and_compare(loaded, make_service, disk)


def opened(registry: FaultyRegistry) -> tuple[Repositories, Repository]:
    repositories = Repositories({registry.host: RegistryConfig(insecure=True)}, credential_files=())
    return repositories, repositories.open(parse_reference(registry.reference()))


@pytest.mark.parametrize("status", [400, 403, 405, 500])
async def test_failed_head_of_a_blob_is_decided_by_a_get(status: int) -> None:
    registry = FaultyRegistry(blobs={BLOB.digest: CONTENT})
    async with run_faulty(registry, answer_head(status)):
        repositories, repository = opened(registry)
        assert await repository.has(BLOB)
        assert not await repository.has(Blob(BLOB.digest, BLOB.size + 1))
        assert not await repository.has(Blob(f"sha256:{'0' * 64}", 5))
        await repositories.close()


async def test_head_redirected_to_a_link_signed_for_get_is_decided_by_a_get() -> None:
    storage, registry = FaultyRegistry(blobs={BLOB.digest: CONTENT}), FaultyRegistry(blobs={BLOB.digest: CONTENT})
    async with run_faulty(storage, answer_head(403)), run_faulty(registry):
        registry.redirect_to = f"http://{storage.host}"
        registry.arm("redirect", times=float("inf"))
        repositories, repository = opened(registry)
        assert await repository.has(BLOB)
        await repositories.close()


# -- single refusals


@dataclass
class Refusals:
    """Refuses the requests for blobs whose number is in `numbers`."""

    status: int
    numbers: frozenset[int]
    count: int = field(default=0)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if "/blobs/" in request.path:
            self.count += 1
            if self.count in self.numbers:
                return web.Response(status=self.status, text="denied")
        return await handler(request)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("has_login", [True, False])
async def test_single_refusal_after_success_is_temporary(
    status: int, has_login: bool, loaded: FaultyRegistry, make_service: MakeService, disk: Path
) -> None:
    tokens, refusals = TokenServer(), Refusals(status, frozenset({2, 4, 5}))
    login = {"username": tokens.user, "password": tokens.password} if has_login else {}
    middlewares = [refusals.middleware, tokens.middleware] if has_login else [refusals.middleware]
    async with run_faulty(loaded, *middlewares):
        await pull_and_compare(loaded, make_service, disk, **login)
    assert refusals.count > 5


async def test_lasting_refusal_after_success_names_the_account(
    loaded: FaultyRegistry, make_service: MakeService
) -> None:
    async with run_faulty(loaded, Refusals(403, frozenset(range(1000))).middleware):
        images = await make_service(loaded.host)
        digest = await images.resolve(loaded.reference())
        with pytest.raises(RegistryError, match="although it allowed earlier ones") as raised:
            await images.pull(loaded.reference(), digest)
        assert "account" in raised.value.remedy


# -- credentials that cannot be read


async def test_broken_helper_does_not_block_a_public_image(
    loaded: FaultyRegistry, make_service: MakeService, disk: Path, tmp_path: Path
) -> None:
    """The registry offers an anonymous login, as registries with public images do."""
    (tmp_path / "docker-config.json").write_text('{"credsStore": "no-such-program"}')
    tokens = TokenServer(anonymous=True)
    async with run_faulty(loaded, tokens.middleware):
        await pull_and_compare(loaded, make_service, disk)


async def test_denial_names_the_broken_helper(
    loaded: FaultyRegistry, make_service: MakeService, tmp_path: Path
) -> None:
    (tmp_path / "docker-config.json").write_text('{"credsStore": "no-such-program"}')
    async with run_faulty(loaded, TokenServer().middleware):
        images = await make_service(loaded.host)
        with pytest.raises(RegistryDeniedError, match="docker-credential-no-such-program"):
            await images.resolve(loaded.reference())


# -- redirects of token servers


@pytest.mark.parametrize("path", ["/elsewhere?x=1", "http://{host}/elsewhere"])
async def test_token_request_follows_a_redirect_within_its_origin(
    path: str, loaded: FaultyRegistry, make_service: MakeService, disk: Path
) -> None:
    tokens = TokenServer()

    @web.middleware
    async def redirect(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == "/token":
            raise web.HTTPTemporaryRedirect(path.format(host=request.host))
        if request.path == "/elsewhere":
            return await tokens.middleware(request.clone(rel_url="/token"), handler)
        return await handler(request)

    async with run_faulty(loaded, redirect, tokens.middleware):
        await pull_and_compare(loaded, make_service, disk, username=tokens.user, password=tokens.password)


async def test_token_request_does_not_follow_a_redirect_to_another_origin(
    loaded: FaultyRegistry, make_service: MakeService
) -> None:
    tokens, other = TokenServer(), FaultyRegistry()

    @web.middleware
    async def redirect(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == "/token":
            raise web.HTTPTemporaryRedirect(f"http://{other.host}/v2/tests/image/blobs/x")
        return await handler(request)

    async with run_faulty(other), run_faulty(loaded, redirect, tokens.middleware):
        settings = RegistryConfig(insecure=True, username=tokens.user, password=tokens.password)
        images = await make_service(loaded.host, registry=settings)
        with pytest.raises(RegistryError, match="is not sent the password"):
            await images.resolve(loaded.reference())
        assert other.seen == []


# -- referrers


@pytest.mark.parametrize("answer", ["html", "redirect", "401", "403", "429", "500", "[]", "{}", '{"manifests": 3}'])
async def test_block_index_is_found_by_tag_without_a_usable_list(
    answer: str, tmp_path: Path, disk: Path, executor: Executor, make_service: MakeService
) -> None:
    digest = await push_layout(disk, tmp_path / "layout", executor)
    await attach(OciLayout(tmp_path / "layout"), Blob(digest, 1), "application/other", b"x")
    registry = FaultyRegistry()
    registry.load(tmp_path / "layout")

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if "/referrers/" not in request.path:
            return await handler(request)
        if answer == "redirect":
            raise web.HTTPFound("/login")
        if answer.isdigit():
            return web.Response(status=int(answer))
        return web.Response(text="<html>log in</html>" if answer == "html" else answer)

    @web.middleware
    async def page(request: web.Request, handler: Handler) -> web.StreamResponse:
        return web.Response(text="<html>log in</html>") if request.path == "/login" else await handler(request)

    async with run_faulty(registry, page, middleware):
        images = await make_service(registry.host)
        await images.pull(registry.reference(), await images.resolve(registry.reference()))
        tag = digest.replace(":", "-")
        assert any(seen.path.endswith(f"/manifests/{tag}") for seen in registry.seen)
        index = images.store.root / ".index" / f"{digest.removeprefix('sha256:')}.blocks"
        assert index.read_bytes()[:4] == b"HBI1"


# -- overload


async def test_registry_that_refuses_every_third_request_is_pulled_and_pushed(
    loaded: FaultyRegistry, make_service: MakeService, disk: Path
) -> None:
    """429 from the token on. The block index is found too, so a version bump stays small."""
    tokens, count = TokenServer(uses=5), itertools.count(1)

    @web.middleware
    async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
        return web.Response(status=429) if next(count) % 3 == 0 else await handler(request)

    async with run_faulty(loaded, refuse, tokens.middleware):
        settings = RegistryConfig(insecure=True, username=tokens.user, password=tokens.password)
        images = await make_service(loaded.host, registry=settings)
        digest = await images.resolve(loaded.reference())
        await images.pull(loaded.reference(), digest)
        assert sha256_of((await images.local(digest)).disk) == sha256_of(disk)
        index = images.store.root / ".index" / f"{digest.removeprefix('sha256:')}.blocks"
        assert index.read_bytes()[:4] == b"HBI1"


async def test_push_persists_while_other_requests_succeed(executor: Executor, tmp_path: Path, disk: Path) -> None:
    """Of thousands of requests, some fail several times in a row by chance."""
    failures = itertools.chain([False], [True] * 7, itertools.repeat(False))

    class Flaky(OciLayout):
        async def has(self, blob: Blob) -> bool:
            if next(failures):
                raise TransferError("the registry replied 429", overloaded=True)
            return await super().has(blob)

    sink = Flaky(tmp_path / "pushed")
    retry = replace(QUICK, attempts=3, patience_s=60.0)
    tools = TransferTools(executor, best_codec(), retry, streams=1)
    digest = await Pusher(tools, 1 << 20).push(disk, sink, "v1", hardware=Hardware())
    assert await sink.digest("v1") == digest


# -- uploads


@dataclass
class Uploads:
    """Accepts uploads. `location` is where the registry sends their content."""

    location: str
    received: list[tuple[str, int]] = field(default_factory=list)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method == "POST":
            return web.Response(status=202, headers={"Location": self.location.format(host=request.host)})
        if request.method in ("PUT", "DELETE"):
            self.received.append((request.headers.get("Authorization", ""), len(await request.read())))
            return web.Response(status=201)
        return await handler(request)


async def test_upload_is_not_sent_in_clear_text(tmp_path: Path, disk: Path, make_service: MakeService) -> None:
    cert, key = await certificate(tmp_path)
    plain, secure = Uploads(""), FaultyRegistry()
    async with run_faulty(FaultyRegistry(), plain.middleware) as target:
        uploads = Uploads(f"http://{target.host}/upload")
        async with run_faulty(secure, uploads.middleware, tls=server_context(cert, key)):
            images = await make_service(secure.host, registry=RegistryConfig(ca_file=cert))
            with pytest.raises(RegistryError, match="from https to http") as raised:
                await images.push(disk, secure.reference(), hardware=Hardware())
            repositories = Repositories({secure.host: RegistryConfig(ca_file=cert)}, credential_files=())
            with pytest.raises(RegistryError, match="from https to http"):
                await repositories.open(parse_reference(secure.reference())).mount(BLOB, "tests/other")
            await repositories.close()
    assert plain.received == uploads.received == []
    assert "X-Forwarded-Proto" in raised.value.remedy


async def test_upload_to_another_host_has_no_password(tmp_path: Path) -> None:
    storage, registry = Uploads(""), FaultyRegistry()
    async with run_faulty(FaultyRegistry(), storage.middleware) as target:
        uploads, tokens = Uploads(f"http://{target.host}/upload?signature=a%2Fb"), TokenServer()
        settings = RegistryConfig(insecure=True, username=tokens.user, password=tokens.password)
        async with run_faulty(registry, tokens.middleware, uploads.middleware):
            repositories = Repositories({registry.host: settings}, credential_files=())
            await repositories.open(parse_reference(registry.reference())).put(BLOB, CONTENT)
            await repositories.close()
    assert storage.received == [("", BLOB.size)]


async def test_upload_without_a_location_is_an_error() -> None:
    registry = FaultyRegistry()
    async with run_faulty(registry, Uploads("").middleware):
        repositories, repository = opened(registry)
        with pytest.raises(RegistryError, match="invalid location"):
            await repository.put(BLOB, CONTENT)
        await repositories.close()
