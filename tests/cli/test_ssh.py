"""`hearth ssh`: to a fresh VM that is given back, or to one that is there. A script stands in for `ssh`."""

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

    from tests.api.memory_engine import MemoryEngine

    Hearth = Callable[..., Ended]

SCRIPT = """#!/bin/sh
for argument; do printf '%s\\n' "$argument"; done > "$SSH_TOLD"
exec sh -c "$SSH_DOES"
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a scripted `ssh` first on PATH; return the file it writes its arguments to."""
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(SCRIPT)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SSH_TOLD", str(tmp_path / "told"))
    monkeypatch.setenv("SSH_DOES", "exit 7")
    return tmp_path / "told"


def test_a_pool_gives_a_fresh_vm_that_is_given_back_with_the_exit_code(
    agent: Agent, hearth: Hearth, told: Path
) -> None:
    ended = hearth("ssh", "small", "-l", "admin", "--socket", agent.socket, "--", "echo", "a b")
    assert (ended.code, ended.err) == (7, "")
    arguments = told.read_text().splitlines()
    assert "StrictHostKeyChecking=no" in arguments
    assert arguments[-6:] == ["-l", "admin", "-p", "40022", "127.0.0.1", "echo 'a b'"]
    assert not agent.engine.leases.held
    assert agent.engine.vms["hearth-small-1"].state is VmState.STOPPING


def test_a_single_argument_is_a_line_for_the_guests_shell(agent: Agent, hearth: Hearth, told: Path) -> None:
    assert hearth("ssh", "small", "--socket", agent.socket, "--", 'echo "a  b"').code == 7
    assert told.read_text().splitlines()[-2:] == ["127.0.0.1", 'echo "a  b"']


def test_a_lease_or_its_vm_is_reached_and_left_as_it_is(agent: Agent, hearth: Hearth, told: Path) -> None:
    lease = json.loads(hearth("lease", "small", "--socket", agent.socket, "--json").out)
    for name in (lease["id"], lease["vm"], "small-1"):
        assert hearth("ssh", name, "--socket", agent.socket).code == 7
        assert told.read_text().splitlines()[-2:] == ["40022", "127.0.0.1"]
    assert list(agent.engine.leases.held) == [lease["id"]]


@pytest.mark.parametrize(
    ("target", "said"),
    [("hearth-small-1", "hearth ssh small"), ("nothing", "no pool, VM or lease"), ("-small-", "no pool, VM or lease")],
)
def test_what_cannot_be_reached_is_told(agent: Agent, hearth: Hearth, told: Path, target: str, said: str) -> None:
    ended = hearth("ssh", "--socket", agent.socket, "--", target)
    assert ended.code == ExitCode.EXEC_FAILED
    assert said in ended.err
    assert not told.exists()


def test_a_remote_hosts_vm_is_reached_by_a_jump(
    agent: Agent, hearth: Hearth, told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.cli.options.remote_host", lambda: "mac-7")
    assert hearth("ssh", "small", "--socket", agent.socket).code == 7
    assert told.read_text().splitlines()[-5:] == ["-J", "mac-7", "-p", "40022", "127.0.0.1"]


def test_a_signal_while_ssh_starts_ends_it_too(agent: Agent, told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_DOES", "kill -INT $PPID; exec sleep 1000")
    process = start("ssh", "small", "--socket", agent.socket)
    process.communicate(timeout=20)  # its output ends with the last process that has it
    assert process.returncode == ExitCode.INTERRUPTED
    assert not agent.engine.leases.held


def test_ctrl_c_ends_ssh_and_gives_the_vm_back(agent: Agent, told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_DOES", "echo there; exec sleep 1000")
    process = start("ssh", "small", "--socket", agent.socket)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == ExitCode.INTERRUPTED
    assert not agent.engine.leases.held


def test_a_vm_without_the_port_says_what_to_do(agent: Agent, hearth: Hearth, told: Path) -> None:
    async def address(_: str) -> Any:
        from agent.hypervisors.contract import Address  # noqa: PLC0415

        return Address("127.0.0.1", {8080: 48080})

    async def swap(engine: MemoryEngine) -> None:
        engine.address = address  # type: ignore[method-assign,assignment]
        await asyncio.sleep(0)

    agent.ask(swap)
    ended = hearth("ssh", "small", "--socket", agent.socket)
    assert ended.code == ExitCode.EXEC_FAILED
    assert "add 22 to `ports`" in ended.err
    assert not agent.engine.leases.held
