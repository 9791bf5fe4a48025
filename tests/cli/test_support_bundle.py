"""The support bundle: its files, with and without an agent, and the removal of secrets."""

from __future__ import annotations

import json
import stat
import tarfile
from typing import TYPE_CHECKING

import structlog

from agent.cli.exit_codes import ExitCode
from agent.cli.support_bundle import API_FILES
from agent.telemetry.log import configure
from agent.telemetry.log_file import log_path
from tests.api.real_engine import RealEngine, vm
from tests.cli.conftest import Agent, Ended

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    Hearth = Callable[..., Ended]

CANARY = "c4n4ry-Kx81vTq9"


def write_configuration(folder: Path) -> Path:
    """Write a configuration with a secret, and a log with secrets that a library logged."""
    config = folder / "hearth.toml"
    registry = f'[images.registries."r:5000"]\nusername = "u"\npassword = "{CANARY}"\n'
    config.write_text(f'data_dir = "."\n{registry}')
    logs = configure(path=log_path(folder), terminal=None)
    structlog.get_logger().info("hello")
    logs.close()
    with log_path(folder).open("a") as file:
        file.write(f"GET https://u:{CANARY}@r:5000/v2/ Authorization: Bearer {CANARY}\n")
    return config


def contents(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        files = {item.name.split("/", 1)[1]: archive.extractfile(item) for item in archive.getmembers()}
        return {name: file.read().decode() for name, file in files.items() if file is not None}


def test_bundle_has_all_files_and_no_secret(tmp_path: Path, hearth: Hearth) -> None:
    config, out = write_configuration(tmp_path), tmp_path / "bundle.tar.gz"
    with Agent(tmp_path, RealEngine(vm("hearth-small-1"))):
        ended = hearth("support-bundle", out, "--config", config)
    assert ended.code == ExitCode.OK
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    files = contents(out)
    assert {*API_FILES, "events.json", "configuration.json", "logs/hearth.log", "about.txt"} <= set(files)
    assert files["missing.txt"] == ""
    assert json.loads(files["vms.json"])["vms"][0]["name"] == "hearth-small-1"
    assert json.loads(files["configuration.json"])["images"]["registries"]["r:5000"]["username"] == "u"
    assert "hello" in files["logs/hearth.log"]
    assert "r:5000/v2/" in files["logs/hearth.log"]
    assert CANARY not in "".join(files.values())


def test_unwritable_bundle_error_names_path(tmp_path: Path, hearth: Hearth) -> None:
    ended = hearth("support-bundle", tmp_path / "none" / "b.tar.gz", "--config", write_configuration(tmp_path))
    assert ended.code == ExitCode.FAILURE
    assert "b.tar.gz cannot be written" in ended.err


def test_bundle_of_remote_host_lacks_local_files(
    tmp_path: Path, hearth: Hearth, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = write_configuration(tmp_path), tmp_path / "bundle.tar.gz"
    with Agent(tmp_path, RealEngine(vm("hearth-small-1"))) as agent:
        monkeypatch.setenv("HEARTH_HOST", f"http://127.0.0.1:{agent.port}")
        assert hearth("support-bundle", out, "--config", config).code == ExitCode.OK
    files = contents(out)
    assert "hearth-small-1" in files["vms.json"]
    assert "configuration.json" not in files
    assert "they are on 127.0.0.1" in files["missing.txt"]


def test_bundle_without_agent_has_logs(tmp_path: Path, hearth: Hearth) -> None:
    config, out = write_configuration(tmp_path), tmp_path / "bundle.tar.gz"
    ended = hearth("support-bundle", out, "--config", config)
    assert ended.code == ExitCode.OK
    assert "1 missing" in ended.out
    files = contents(out)
    assert "does not answer" in files["missing.txt"]
    assert "logs/hearth.log" in files
