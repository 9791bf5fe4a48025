"""Access to registries: challenges, expiring tokens, docker's configuration, and certificates."""

from __future__ import annotations

import base64
import json
import stat
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import RegistryConfig
from agent.images.errors import RegistryDeniedError, RegistryError
from agent.images.reference import parse_reference
from agent.images.repositories import Repositories
from agent.images.sources.auth import requested_scope
from agent.images.sources.credentials import Credentials, DockerCredentials
from agent.images.sources.http_headers import Challenge, parse_challenges, retry_after_s
from agent.processes.command import CommandOutcome, CommandReport, CommandRunner
from tests.images.certificates import certificate, server_context
from tests.images.disks import push_layout, sha256_of
from tests.images.faulty_registry import FaultyRegistry, run_faulty
from tests.images.token_server import TokenServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from concurrent.futures import Executor
    from pathlib import Path

    from tests.images.conftest import MakeService


@pytest.fixture
async def guarded(tmp_path: Path, disk: Path, executor: Executor) -> AsyncIterator[tuple[FaultyRegistry, TokenServer]]:
    await push_layout(disk, tmp_path / "layout", executor)
    registry, tokens = FaultyRegistry(), TokenServer()
    registry.load(tmp_path / "layout")
    async with run_faulty(registry, tokens.middleware):
        yield registry, tokens


def login(tokens: TokenServer) -> RegistryConfig:
    return RegistryConfig(insecure=True, username=tokens.user, password=tokens.password)


async def test_one_token_serves_a_whole_pull(
    guarded: tuple[FaultyRegistry, TokenServer], make_service: MakeService, disk: Path
) -> None:
    registry, tokens = guarded
    images = await make_service(registry.host, registry=login(tokens))
    digest = await images.resolve(registry.reference())
    await images.pull(registry.reference(), digest)
    assert sha256_of((await images.local(digest)).disk) == sha256_of(disk)
    assert tokens.answers == [{"service": "tests", "scope": "repository:tests/image:pull"}]
    assert tokens.refused == 1


@pytest.mark.parametrize(
    ("challenged", "needed", "requested"),
    [
        ("", "repository:a/b:pull", "repository:a/b:pull"),
        ("repository:a/b:pull", "repository:a/b:pull", "repository:a/b:pull"),
        ("repository:a/b:pull", "repository:a/b:pull,push", "repository:a/b:pull,push"),
        ("repository:a/b:pull,push", "repository:a/b:pull", "repository:a/b:pull,push"),
        ("repository:proxy/a/b:pull", "repository:a/b:pull", "repository:proxy/a/b:pull"),
        ("registry:catalog:*", "repository:a/b:pull", "registry:catalog:*"),
        (
            "repository:a:pull,push repository:b:pull",
            "repository:a:pull,push repository:b:pull",
            "repository:a:pull,push repository:b:pull",
        ),
    ],
)
def test_token_is_requested_for_the_scope_of_the_challenge(challenged: str, needed: str, requested: str) -> None:
    assert requested_scope(challenged, needed) == requested


async def test_scope_of_the_challenge_reaches_the_token_server(
    guarded: tuple[FaultyRegistry, TokenServer], make_service: MakeService
) -> None:
    """A registry behind a prefix names the repository otherwise than the reference does."""
    registry, tokens = guarded
    tokens.scope = "repository:prefix/tests/image:pull"
    images = await make_service(registry.host, registry=login(tokens))
    await images.resolve(registry.reference())
    assert {answer["scope"] for answer in tokens.answers} == {"repository:prefix/tests/image:pull"}


async def test_expired_token_is_renewed_during_a_pull(
    guarded: tuple[FaultyRegistry, TokenServer], make_service: MakeService, disk: Path
) -> None:
    registry, tokens = guarded
    tokens.uses = 2
    images = await make_service(registry.host, registry=login(tokens))
    digest = await images.resolve(registry.reference())
    await images.pull(registry.reference(), digest)
    assert sha256_of((await images.local(digest)).disk) == sha256_of(disk)
    assert len(tokens.answers) > 2


async def test_parallel_streams_fetch_one_new_token(
    guarded: tuple[FaultyRegistry, TokenServer], make_service: MakeService
) -> None:
    registry, tokens = guarded
    images = await make_service(registry.host, registry=login(tokens))
    digest = await images.resolve(registry.reference())
    tokens.left.clear()
    tokens.answers.clear()
    await images.pull(registry.reference(), digest)
    assert len(tokens.answers) == 1


@pytest.mark.parametrize("known", [True, False])
async def test_denial_error_names_the_registry(
    known: bool, guarded: tuple[FaultyRegistry, TokenServer], make_service: MakeService
) -> None:
    registry, tokens = guarded
    tokens.refuse_all = True
    settings = login(tokens) if known else RegistryConfig(insecure=True)
    images = await make_service(registry.host, registry=settings)
    with pytest.raises(RegistryDeniedError) as raised:
        await images.resolve(registry.reference())
    assert registry.host in raised.value.message
    assert ("'builder'" if known else "anonymous") in raised.value.message
    assert tokens.refused <= 6, "three for HEAD and three for GET"


async def test_docker_identity_token_is_exchanged(
    guarded: tuple[FaultyRegistry, TokenServer], make_service: MakeService, tmp_path: Path
) -> None:
    registry, tokens = guarded
    auths = {registry.host: {"identitytoken": tokens.identity}}
    (tmp_path / "docker-config.json").write_text(json.dumps({"auths": auths}))
    images = await make_service(registry.host)
    assert await images.resolve(registry.reference())
    assert tokens.answers[0]["grant_type"] == "refresh_token"


async def test_docker_password_may_contain_a_colon(
    guarded: tuple[FaultyRegistry, TokenServer], make_service: MakeService, tmp_path: Path
) -> None:
    registry, tokens = guarded
    pair = base64.b64encode(f"{tokens.user}:{tokens.password}".encode()).decode()
    (tmp_path / "docker-config.json").write_text(json.dumps({"auths": {registry.host: {"auth": pair}}}))
    assert await (await make_service(registry.host)).resolve(registry.reference())


HELPER = """#!/bin/sh
read -r host
echo "a warning that is no answer" >&2
case "$host" in
    known.example) echo '{"Username":"u","Secret":"s"}' ;;
    token.example) echo '{"Username":"<token>","Secret":"refresh"}' ;;
    garbage.example) echo 'what?' ;;
    hangs.example) sleep 60 ;;
    empty.example) echo 'credentials not found in native keychain'; exit 1 ;;
    *) echo 'the keychain is locked' >&2; exit 1 ;;
esac
"""


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reports: list[CommandReport]) -> DockerCredentials:
    program = tmp_path / "bin" / "docker-credential-tests"
    program.parent.mkdir()
    program.write_text(HELPER)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    asked = ("known", "token", "garbage", "hangs", "empty", "locked")
    config = {
        "credHelpers": {f"{name}.example": "tests" for name in asked},
        "auths": {"plain.example": {"username": "a", "password": "b"}, "https://old.example/v1/": {"auth": "YTpi"}},
        "credsStore": "missing",
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return DockerCredentials(path, CommandRunner(reports.append))


@pytest.fixture
def reports() -> list[CommandReport]:
    """The command reports of helper programs, as the metrics get them."""
    return []


async def test_docker_helpers_and_entries_are_used(helper: DockerCredentials) -> None:
    assert await helper.find("known.example") == Credentials("u", "s")
    assert await helper.find("token.example") == Credentials(identity_token="refresh")
    assert await helper.find("empty.example") is None
    assert await helper.find("plain.example") == Credentials("a", "b")
    assert await helper.find("old.example") == Credentials("a", "b")


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("garbage.example", "invalid JSON"),
        ("locked.example", "keychain is locked"),
        ("any.example", "docker-credential-missing"),
    ],
)
async def test_failed_helper_is_named_in_the_error(host: str, says: str, helper: DockerCredentials) -> None:
    with pytest.raises(RegistryDeniedError, match=says):
        await helper.find(host)


async def test_hanging_helper_is_ended_and_counted(
    helper: DockerCredentials, reports: list[CommandReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.images.sources.credentials.HELPER_TIMEOUT_S", 0.2)
    with pytest.raises(RegistryDeniedError, match="did not end in"):
        await helper.find("hangs.example")
    assert [(report.program, report.outcome) for report in reports] == [
        ("docker-credential-tests", CommandOutcome.TIMEOUT)
    ]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"auths": 3}', '{"auths": {"a.example": {"auth": "%%%"}}}', "\xff"]
)
async def test_invalid_docker_configuration_means_anonymous(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    assert await DockerCredentials(tmp_path / "config.json", CommandRunner()).find("a.example") is None


def test_secrets_are_not_in_repr() -> None:
    assert "hush" not in repr(Credentials("user", "hush", "hush"))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Bearer realm="https://a/t",service="s"', [Challenge("bearer", {"realm": "https://a/t", "service": "s"})]),
        ('bearer REALM="a,b=c"', [Challenge("bearer", {"realm": "a,b=c"})]),
        (
            'Basic realm="x", Bearer realm="y"',
            [Challenge("basic", {"realm": "x"}), Challenge("bearer", {"realm": "y"})],
        ),
        (r'Basic realm="a \"quoted\" one"', [Challenge("basic", {"realm": 'a "quoted" one'})]),
        ("Basic", [Challenge("basic")]),
        ("Negotiate, Basic realm=x", [Challenge("negotiate"), Challenge("basic", {"realm": "x"})]),
        ("Bearer realm=plain , service = s", [Challenge("bearer", {"realm": "plain", "service": "s"})]),
        ('Bearer realm="unclosed', [Challenge("bearer")]),
        ('Bearer realm="https://a/t?x=1",service="\udcff"', [Challenge("bearer", {"realm": "https://a/t?x=1"})]),
        ("", []),
        ("=", []),
    ],
)
def test_challenges_are_parsed(header: str, expected: list[Challenge]) -> None:
    assert list(parse_challenges([header])) == expected


@given(st.text(max_size=200))
def test_any_challenge_is_parsed_without_an_error(header: str) -> None:
    assert all(challenge.scheme for challenge in parse_challenges([header]))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("5", 5.0),
        ("Mon, 23 Nov 2026 00:00:30 GMT", 30.0),
        ("Sun, 22 Nov 2026 00:00:00 GMT", 0.0),
        ("soon", None),
        ("", None),
        (None, None),
        ("-5", None),
        ("9" * 400, 999999999.0),
        ("Mon, 01 Jan 2024 00:00:00 +99999999999999999999", None),
        ("Mon, 01 Jan 99999999999 00:00:00 GMT", None),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0.0),
        ("Mon, 23 Nov 2026 00:00:30", 30.0),
        ("\udcff" * 10_000, None),
    ],
)
def test_retry_after_is_parsed(value: str | None, expected: float | None) -> None:
    assert retry_after_s(value, datetime(2026, 11, 23, tzinfo=UTC)) == expected


async def test_private_authority_is_trusted_when_configured(tmp_path: Path) -> None:
    cert, key = await certificate(tmp_path)
    context = server_context(cert, key)
    registry = FaultyRegistry(manifests={"v1": b"{}"})
    async with run_faulty(registry, tls=context):
        reference = parse_reference(registry.reference())
        trusting = Repositories({registry.host: RegistryConfig(ca_file=cert)})
        careful = Repositories({})
        broken = Repositories({registry.host: RegistryConfig(ca_file=key)})
        try:
            assert await trusting.open(reference).manifest("v1") == b"{}"
            with pytest.raises(RegistryError) as raised:
                await careful.open(reference).manifest("v1")
            assert "ca_file" in raised.value.remedy
            with pytest.raises(RegistryError, match="key.pem"):
                broken.open(reference)
        finally:
            for places in (trusting, careful, broken):
                await places.close()
