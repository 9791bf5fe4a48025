"""`hearth ssh` to a fresh VM and to an existing VM. A script replaces the program `ssh`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from agent.cli.exit_codes import ExitCode
from agent.domain.states import VmState
from tests.cli.conftest import Agent, Ended, start

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.api.real_engine import RealEngine

    Hearth = Callable[..., Ended]

SCRIPT = """#!/bin/sh
for argument; do printf '%s\\n' "$argument"; done > "$SSH_ARGUMENTS"
exec sh -c "$SSH_SCRIPT"
"""


@pytest.fixture
def ssh_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a scripted `ssh` first on PATH; return the file it writes its arguments to."""
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(SCRIPT)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SSH_ARGUMENTS", str(tmp_path / "arguments"))
    monkeypatch.setenv("SSH_SCRIPT", "exit 7")
    return tmp_path / "arguments"


def test_ssh_to_pool_leases_and_releases_vm(agent: Agent, hearth: Hearth, ssh_log: Path) -> None:
    ended = hearth("ssh", "small", "-l", "admin", "--socket", agent.socket, "--", "echo", "a b")
    assert (ended.code, ended.err) == (7, "")
    arguments = ssh_log.read_text().splitlines()
    assert "StrictHostKeyChecking=no" in arguments
    assert arguments[-6:] == ["-l", "admin", "-p", "40022", "127.0.0.1", "echo 'a b'"]
    assert not agent.engine.leases
    assert agent.engine.vms["hearth-small-1"].state is VmState.STOPPING


def test_ssh_passes_single_argument_unquoted(agent: Agent, hearth: Hearth, ssh_log: Path) -> None:
    assert hearth("ssh", "small", "--socket", agent.socket, "--", 'echo "a  b"').code == 7
    assert ssh_log.read_text().splitlines()[-2:] == ["127.0.0.1", 'echo "a  b"']


def test_ssh_to_lease_or_vm_keeps_lease(agent: Agent, hearth: Hearth, ssh_log: Path) -> None:
    lease = json.loads(hearth("lease", "small", "--socket", agent.socket, "--json").out)
    for name in (lease["id"], lease["vm"], "small-1"):
        assert hearth("ssh", name, "--socket", agent.socket).code == 7
        assert ssh_log.read_text().splitlines()[-2:] == ["40022", "127.0.0.1"]
    assert list(agent.engine.leases) == [lease["id"]]


@pytest.mark.parametrize(
    ("target", "message"),
    [("hearth-small-1", "hearth ssh small"), ("nothing", "no pool, VM or lease"), ("-small-", "no pool, VM or lease")],
)
def test_ssh_to_unusable_target_fails(agent: Agent, hearth: Hearth, ssh_log: Path, target: str, message: str) -> None:
    ended = hearth("ssh", "--socket", agent.socket, "--", target)
    assert ended.code == ExitCode.EXEC_FAILED
    assert message in ended.err
    assert not ssh_log.exists()


def test_ssh_to_remote_host_uses_jump(
    agent: Agent, hearth: Hearth, ssh_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.cli.options.remote_host", lambda: "mac-7")
    assert hearth("ssh", "small", "--socket", agent.socket).code == 7
    assert ssh_log.read_text().splitlines()[-5:] == ["-J", "mac-7", "-p", "40022", "127.0.0.1"]


def test_ssh_is_terminated_by_signal_during_start(agent: Agent, ssh_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_SCRIPT", "kill -INT $PPID; exec sleep 1000")
    process = start("ssh", "small", "--socket", agent.socket)
    process.communicate(timeout=20)  # its output ends with the last process that has it
    assert process.returncode == ExitCode.INTERRUPTED
    assert not agent.engine.leases


def test_ssh_releases_vm_on_ctrl_c(agent: Agent, ssh_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_SCRIPT", "echo there; exec sleep 1000")
    process = start("ssh", "small", "--socket", agent.socket)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == ExitCode.INTERRUPTED
    assert not agent.engine.leases


def test_ssh_error_names_missing_port(agent: Agent, hearth: Hearth, ssh_log: Path) -> None:
    async def address(_: str) -> Any:
        from agent.hypervisors.contract import Address  # noqa: PLC0415

        return Address("127.0.0.1", {8080: 48080})

    async def swap(engine: RealEngine) -> None:
        engine.guests.address = address  # type: ignore[method-assign,assignment]
        await asyncio.sleep(0)

    agent.call(swap)
    ended = hearth("ssh", "small", "--socket", agent.socket)
    assert ended.code == ExitCode.EXEC_FAILED
    assert "add 22 to `ports`" in ended.err
    assert not agent.engine.leases
