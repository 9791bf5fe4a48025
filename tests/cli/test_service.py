"""`hearth service` on a simulated Mac, and on a system without launchd."""

from __future__ import annotations

import json
import os
import plistlib
import sys
from typing import TYPE_CHECKING

import pytest

from agent.cli import service
from agent.cli.exit_codes import ExitCode
from agent.host.service.target import LABEL
from agent.host.user_accounts import Account
from tests.support.launchd import ACCOUNT, Launchd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cli.conftest import Ended

    Hearth = Callable[..., Ended]


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launchd]:
    """Simulate the parts of a Mac that `hearth service` uses: launchd, folders, and a logged-in user."""
    launchd = Launchd(tmp_path)
    launchd.set("sessions", str(ACCOUNT.uid or 501))
    for name, value in launchd.environment.items():
        monkeypatch.setenv(name, value)
    account = Account("ci", ACCOUNT.uid or 501, ACCOUNT.gid, launchd.root / "Users/ci")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(service, "ROOT", launchd.root)
    monkeypatch.setattr(service, "invoking_user", lambda: account)
    (tmp_path / "hearth").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "hearth").chmod(0o755)
    (tmp_path / "hearth.toml").write_text(f'data_dir = "{tmp_path}/data"\n[hypervisor]\nkind = "anka"\n')
    yield launchd
    launchd.close()


@pytest.mark.slow
def test_service_is_installed_and_uninstalled(mac: Launchd, hearth: Hearth, tmp_path: Path) -> None:
    arguments = ("--config", tmp_path / "hearth.toml", "--program", tmp_path / "hearth")
    assert hearth("service", "status").code == ExitCode.NOT_FOUND
    done = hearth("service", "install", *arguments, "--env", "TART_HOME=/Volumes/VMs")
    assert (done.code, done.err) == (ExitCode.OK, "")
    assert done.out == f"system/{LABEL} runs {tmp_path}/hearth\n"
    written = plistlib.loads(mac.daemon().plist.read_bytes())
    assert written["EnvironmentVariables"]["TART_HOME"] == "/Volumes/VMs"

    shown = hearth("service", "status", "--json")
    document = json.loads(shown.out)
    assert shown.code == ExitCode.OK
    assert (document["as"], document["installed"], document["loaded"], document["state"], document["runs"]) == (
        "daemon", True, True, "running", 1,
    )  # fmt: skip
    assert document["pid"] == mac.pids()[0]
    repeated = hearth("service", "install", *arguments, "--env", "TART_HOME=/Volumes/VMs")
    assert "already installed and runs" in repeated.out

    assert "VMs continue to run" in hearth("service", "stop").out
    assert hearth("service", "status").code == ExitCode.UNREACHABLE
    assert json.loads(hearth("service", "start", "--json").out)["changed"]
    assert hearth("service", "restart").code == ExitCode.OK
    assert "is uninstalled" in hearth("service", "uninstall").out
    assert hearth("service", "status").code == ExitCode.NOT_FOUND
    assert hearth("service", "start").code == ExitCode.NOT_FOUND


def test_second_agent_is_not_installed(mac: Launchd, hearth: Hearth, tmp_path: Path) -> None:
    arguments = ("--config", tmp_path / "hearth.toml", "--program", tmp_path / "hearth")
    assert hearth("service", "install", *arguments).code == ExitCode.OK
    refused = hearth("service", "install", "--as", "user", *arguments)
    assert refused.code == ExitCode.REFUSED
    assert "run `hearth service uninstall --as daemon` first" in refused.err
    assert len(mac.pids()) == 1


@pytest.mark.slow
def test_tart_agent_is_installed_for_user(mac: Launchd, hearth: Hearth, tmp_path: Path) -> None:
    config = tmp_path / "hearth.toml"
    config.write_text(config.read_text().replace("anka", "tart"))
    ended = hearth("service", "install", "--config", config, "--program", tmp_path / "hearth", "--json")
    document = json.loads(ended.out)
    assert (document["as"], document["changed"], document["state"]) == ("user", True, "running")
    assert document["service"] == f"gui/{ACCOUNT.uid or 501}/{LABEL}"


def test_invalid_service_is_not_installed(mac: Launchd, hearth: Hearth, tmp_path: Path) -> None:
    config = tmp_path / "hearth.toml"
    missing = hearth("service", "install", "--config", config, "--program", tmp_path / "nothing")
    assert missing.code == ExitCode.REFUSED
    secret = ("--program", tmp_path / "hearth", "--env", "HEARTH_TOKEN=abc")
    assert hearth("service", "install", "--config", config, *secret).code == ExitCode.REFUSED
    config.write_text("[hots]\n")
    assert hearth("service", "install", "--config", config, *secret[:2]).code == ExitCode.BAD_CONFIGURATION
    assert not mac.daemon().plist.exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="there is a launchd")
@pytest.mark.parametrize("verb", ["install", "uninstall", "start", "stop", "restart", "status"])
def test_service_commands_fail_without_launchd(hearth: Hearth, verb: str) -> None:
    ended = hearth("service", verb)
    assert (ended.code, ended.out) == (ExitCode.UNAVAILABLE, "")
    assert "runs the agent under launchd, which keeps it running on a Mac" in ended.err
    assert "docs/launchd.md has a unit for systemd" in ended.err


def test_service_program_is_path_of_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "versions" / "1" / "hearth"
    real.parent.mkdir(parents=True)
    real.write_text("")
    real.chmod(0o755)
    (tmp_path / "current").symlink_to(real.parent)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "current" / "hearth")])
    assert service._program_path(None) == tmp_path / "current" / "hearth"
    monkeypatch.setattr(sys, "argv", ["-m"])
    if os.access(f"{sys.prefix}/bin/hearth", os.X_OK):
        assert str(service._program_path(None)) == f"{sys.prefix}/bin/hearth"
