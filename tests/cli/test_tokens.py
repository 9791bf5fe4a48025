"""Tokens on the command line, and the command line against an agent elsewhere."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING

import pytest

from agent.api.auth import TokenGate, tokens_path
from agent.cli.exits import Exit
from tests.api.certificates import authority, certificate
from tests.api.memory_engine import MemoryEngine, vm
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


def test_a_token_is_made_listed_and_revoked(config: Path, hearth: Hearth) -> None:
    made = hearth("token", "create", "controller-1", "--role", "lease", "--expires", "90d")
    secret = made.out.strip()
    assert secret.startswith("hearth_")
    file = tokens_path(config.parent / "data")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    listed = hearth("token", "list")
    assert "controller-1" in listed.out
    assert "lease" in listed.out
    (told,) = json.loads(hearth("token", "list", "--json").out)
    assert (told["name"], told["role"]) == ("controller-1", "lease")
    assert secret not in listed.out + json.dumps(told)
    assert hearth("token", "create", "controller-1").code == Exit.REFUSED
    assert hearth("token", "revoke", "controller-1").code == Exit.OK
    assert hearth("token", "revoke", "controller-1").code == Exit.REFUSED
    assert hearth("token", "list").out == ""


def test_an_agent_elsewhere_is_asked_over_tls_with_a_token(
    config: Path, hearth: Hearth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = hearth("token", "create", "me", "--role", "read").out.strip()
    ca, tls = authority(tmp_path), certificate(tmp_path, "host")
    gate = TokenGate(tokens_path(config.parent / "data"))
    with Agent(tmp_path, MemoryEngine(vm("hearth-small-1")), gate=gate, tls=tls) as agent:
        monkeypatch.setenv("HEARTH_HOST", f"https://127.0.0.1:{agent.port}")
        untrusted = hearth("vms")
        assert untrusted.code == Exit.UNREACHABLE
        assert "HEARTH_CA" in untrusted.err
        monkeypatch.setenv("HEARTH_CA", str(ca))
        unknown = hearth("vms")
        assert unknown.code == Exit.REFUSED
        assert "no token" in unknown.err
        monkeypatch.setenv("HEARTH_TOKEN", secret)
        assert "hearth-small-1" in hearth("vms").out
        assert "hearth-small-1" in hearth("status").out
        refused = hearth("lease", "small")
        assert refused.code == Exit.REFUSED
        assert "'me' may read, and this needs lease" in refused.err
        assert secret not in untrusted.err + unknown.err + refused.err


def test_an_address_that_is_none_is_named(hearth: Hearth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEARTH_HOST", "mac-7")
    ended = hearth("status")
    assert ended.code == Exit.UNREACHABLE
    assert "https://HOST:PORT" in ended.err
