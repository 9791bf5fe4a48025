"""`hearth token`, and commands against an agent on another host."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

import pytest

from agent.api.auth import TokenAuthenticator, tokens_path
from agent.cli.exit_codes import ExitCode
from tests.api.certificates import authority, certificate
from tests.api.real_engine import RealEngine, vm
from tests.cli.conftest import Agent, Ended

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Hearth = Callable[..., Ended]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "hearth.toml"
    path.write_text('data_dir = "data"\n')
    monkeypatch.setenv("HEARTH_CONFIG", str(path))
    return path


def test_token_is_created_listed_and_revoked(config: Path, hearth: Hearth) -> None:
    created = hearth("token", "create", "controller-1", "--role", "lease", "--expires", "90d")
    secret = created.out.strip()
    assert secret.startswith("hearth_")
    file = tokens_path(config.parent / "data")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    listed = hearth("token", "list")
    assert "controller-1" in listed.out
    assert "lease" in listed.out
    (listed_token,) = json.loads(hearth("token", "list", "--json").out)
    assert (listed_token["name"], listed_token["role"]) == ("controller-1", "lease")
    assert secret not in listed.out + json.dumps(listed_token)
    assert hearth("token", "create", "controller-1").code == ExitCode.REFUSED
    assert hearth("token", "revoke", "controller-1").code == ExitCode.OK
    assert hearth("token", "revoke", "controller-1").code == ExitCode.REFUSED
    assert hearth("token", "list").out == ""


def test_remote_agent_is_used_with_tls_and_token(
    config: Path, hearth: Hearth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = hearth("token", "create", "me", "--role", "read").out.strip()
    ca, tls = authority(tmp_path), certificate(tmp_path, "host")
    authenticator = TokenAuthenticator(tokens_path(config.parent / "data"))
    with Agent(tmp_path, RealEngine(vm("hearth-small-1")), authenticator=authenticator, tls=tls) as agent:
        monkeypatch.setenv("HEARTH_HOST", f"https://127.0.0.1:{agent.port}")
        untrusted = hearth("vms")
        assert untrusted.code == ExitCode.UNREACHABLE
        assert "HEARTH_CA" in untrusted.err
        monkeypatch.setenv("HEARTH_CA", str(ca))
        unknown = hearth("vms")
        assert unknown.code == ExitCode.REFUSED
        assert "no token" in unknown.err
        monkeypatch.setenv("HEARTH_TOKEN", secret)
        assert "hearth-small-1" in hearth("vms").out
        assert "hearth-small-1" in hearth("status").out
        refused = hearth("lease", "small")
        assert refused.code == ExitCode.REFUSED
        assert "'me' has the role read, and this needs lease" in refused.err
        assert secret not in untrusted.err + unknown.err + refused.err


def test_remote_agent_options_work_with_mutual_tls(config: Path, hearth: Hearth, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(hearth("token", "create", "me", "--role", "lease").out)
    ca, tls, mine = authority(tmp_path), certificate(tmp_path, "host"), certificate(tmp_path, "me")
    authenticator, both = (
        TokenAuthenticator(tokens_path(config.parent / "data")),
        tls.model_copy(update={"client_ca": ca}),
    )
    with Agent(tmp_path, RealEngine(vm("hearth-small-1")), authenticator=authenticator, tls=both) as agent:
        url = f"https://127.0.0.1:{agent.port}"
        login = ("--ca", ca, "--token-file", token)
        shown = ("--cert", mine.certificate, "--key", mine.key)
        refused = hearth("--host", url, *login, "vms")
        assert refused.code == ExitCode.UNREACHABLE
        assert "HEARTH_CERT" in refused.err
        assert "hearth-small-1" in hearth("--host", url, *login, *shown, "vms").out
        assert "hearth-small-1" in hearth(*login, *shown, "vms", "--host", url).out
        ended = hearth(*login, *shown, "exec", "small", "--host", url, "--", "sh", "-c", "exit 7")
        assert (ended.code, ended.err) == (7, "")
        for name in ("HEARTH_HOST", "HEARTH_CA", "HEARTH_CERT", "HEARTH_KEY", "HEARTH_TOKEN_FILE"):
            os.environ.pop(name)


def test_local_command_refuses_host_option(hearth: Hearth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEARTH_HOST", "")  # the option sets it
    ended = hearth("--host", "https://mac-7", "logs")
    assert ended.code == ExitCode.USAGE
    assert "run it there" in ended.err
    assert "No such option" in hearth("logs", "--host", "https://mac-7").err
    assert hearth("--host", "https://mac-7", "image", "pull", "registry/a:v1").code == ExitCode.USAGE


@pytest.mark.parametrize("name", ["HEARTH_TOKEN_FILE", "HEARTH_CA", "HEARTH_CERT"])
def test_unreadable_login_file_is_named(hearth: Hearth, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HEARTH_HOST", "https://127.0.0.1:1")
    monkeypatch.setenv(name, "/nowhere/it")
    ended = hearth("status")
    assert ended.code == ExitCode.FAILURE
    assert "/nowhere/it" in ended.err
    assert name in ended.err


def test_invalid_host_url_is_named(hearth: Hearth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEARTH_HOST", "mac-7")
    ended = hearth("status")
    assert ended.code == ExitCode.UNREACHABLE
    assert "https://HOST:PORT" in ended.err
