"""`hearth exec`: the guest's exit code and output, and a VM that is given back however it ends."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.api import exec_stream
from agent.cli import client, exec_client, execute, interrupts, temporary_lease
from agent.cli.exit_codes import ExitCode
from agent.domain.states import VmState
from tests.cli.conftest import Agent, Ended, InterruptAt, start

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.api.memory_engine import MemoryEngine

    Hearth = Callable[..., Ended]


def given_back(agent: Agent) -> bool:
    return not agent.engine.leases.held and agent.engine.vms["hearth-small-1"].state is VmState.STOPPING


def test_the_guests_exit_code_and_output_come_through(agent: Agent) -> None:
    process = start("exec", "small", "--socket", agent.socket, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert process.communicate(timeout=20) == ("out\n", "err\n")
    assert process.returncode == 7
    assert agent.engine.executed == [("hearth-small-1", ("sh", "-c", "echo out; echo err >&2; exit 7"))]
    assert given_back(agent)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_command_and_gives_the_vm_back(agent: Agent, number: signal.Signals) -> None:
    async def running(engine: MemoryEngine) -> None:
        async with asyncio.timeout(10):
            await engine.exec_asked.wait()

    process = start("exec", "small", "--socket", agent.socket, "--", "sleep", "1000")
    agent.ask(running)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (ExitCode.INTERRUPTED, "", "")
    assert given_back(agent)


def test_ctrl_c_while_waiting_for_a_vm_leaves_the_line(agent: Agent) -> None:
    async def in_line(engine: MemoryEngine) -> None:
        async with asyncio.timeout(10):
            await engine.leases.arrived.wait()

    async def left(engine: MemoryEngine) -> int:
        async with asyncio.timeout(10):
            await engine.leases.left.wait()
        return len(engine.leases.line)

    async def take(engine: MemoryEngine) -> None:
        engine.become("hearth-small-1", VmState.STOPPING)

    agent.ask(take)
    process = start("exec", "small", "--socket", agent.socket, "--", "true")
    agent.ask(in_line)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == ExitCode.INTERRUPTED
    assert agent.ask(left) == 0
    assert not agent.engine.leases.held


def test_ctrl_c_before_the_lease_was_told_gives_it_back(agent: Agent) -> None:
    async def granted(engine: MemoryEngine) -> None:
        async with asyncio.timeout(10):
            await engine.address_asked.wait()

    agent.engine.address_hangs = True
    process = start("exec", "small", "--socket", agent.socket, "--", "true")
    agent.ask(granted)
    assert agent.engine.leases.held
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == ExitCode.INTERRUPTED
    assert given_back(agent)


def test_ctrl_c_while_the_vm_is_given_back_changes_nothing(agent: Agent) -> None:
    asked, go_on = threading.Event(), asyncio.Event()
    release = agent.engine.leases.release

    async def slow(lease_id: str) -> None:
        asked.set()
        await go_on.wait()
        await release(lease_id)

    async def let_go(_: MemoryEngine) -> None:
        go_on.set()

    agent.engine.leases.release = slow  # type: ignore[method-assign]
    process = start("exec", "small", "--socket", agent.socket, "--", "sh", "-c", "exit 7")
    assert asked.wait(10)
    assert process.stderr is not None
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        assert "releasing the VM" in process.stderr.readline()
    agent.ask(let_go)
    process.communicate(timeout=20)
    assert process.returncode == 7
    assert given_back(agent)


def test_there_is_no_moment_at_which_ctrl_c_leaves_a_lease(agent: Agent, hearth: Hearth) -> None:
    """Interrupts one run at the first line it reaches, the next some lines later, until one gets through."""

    async def another(engine: MemoryEngine) -> None:
        engine.become("hearth-small-1", VmState.READY)

    for moment in itertools.count(1, 1 if os.environ.get("HEARTH_SLOW") else 5):
        interrupt = InterruptAt(moment, temporary_lease, client, execute, exec_client, interrupts)
        sys.settrace(interrupt)
        try:
            ended = hearth("exec", "small", "--socket", agent.socket, "--", "sh", "-c", "exit 7")
        finally:
            sys.settrace(None)
        assert not agent.engine.leases.held, f"the interrupt at line {moment} left a lease"
        if interrupt.passed < moment:
            assert (ended.code, moment > 100) == (7, True)
            break
        assert ended.code in (7, ExitCode.INTERRUPTED)
        agent.ask(another)


def test_input_and_output_pass_while_the_command_runs(agent: Agent) -> None:
    command = ("exec", "small", "-i", "--socket", agent.socket, "--", "cat")
    process = start(*command, stdin=subprocess.PIPE, text=False)
    assert process.stdin is not None
    assert process.stdout is not None
    for line in (b"one\n", b"\x00\xff\n"):
        process.stdin.write(line)
        process.stdin.flush()
        assert process.stdout.readline() == line
    assert process.communicate(b"last", timeout=20) == (b"last", b"")
    assert process.returncode == 0
    assert given_back(agent)


def test_output_that_nobody_reads_any_more_ends_the_command(agent: Agent) -> None:
    process = start("exec", "small", "--socket", agent.socket, "--", "yes")
    assert process.stdout is not None
    assert process.stdout.readline() == "y\n"
    process.stdout.close()
    assert process.wait(20) == ExitCode.BROKEN_PIPE
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert given_back(agent)


def test_a_reader_that_pauses_holds_the_command_up(
    agent: Agent, hearth: Hearth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A paused `less`: for longer than the agent would wait for a client that is silent."""
    monkeypatch.setattr(exec_stream, "SILENCE_S", 0.3)
    monkeypatch.setattr(exec_client, "_KEEPALIVE_S", 0.05)
    wrote: list[int] = []

    def write(frame: bytes) -> None:
        if not wrote:
            threading.Event().wait(0.9)  # the pause itself
        wrote.append(len(frame) - 1)

    monkeypatch.setattr(exec_client, "_write", write)
    ended = hearth("exec", "small", "--socket", agent.socket, "--", "sh", "-c", "yes | head -c 20000000; exit 7")
    assert (ended.code, ended.err, sum(wrote)) == (7, "", 20_000_000)
    assert given_back(agent)


def test_output_that_cannot_be_written_is_hearths_failure(agent: Agent) -> None:
    command = [sys.executable, "-m", "agent", "exec", "small", "--socket", str(agent.socket), "--", "echo", "out"]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=20, check=False)
    assert ended.returncode == ExitCode.EXEC_FAILED
    assert "the command's output cannot be written: No space left on device" in ended.stderr
    assert given_back(agent)


def test_a_command_that_takes_too_long_is_hearths_failure(agent: Agent, hearth: Hearth) -> None:
    ended = hearth("exec", "small", "--timeout", "0.1s", "--socket", agent.socket, "--", "sleep", "1000")
    assert ended.code == ExitCode.EXEC_FAILED
    assert "`sleep` did not end within 0.1 s" in ended.err
    assert given_back(agent)


def test_no_vm_is_hearths_failure_too(agent: Agent, hearth: Hearth) -> None:
    ended = hearth("exec", "other", "--socket", agent.socket, "--", "true")
    assert ended.code == ExitCode.EXEC_FAILED
    assert "there is no pool 'other'" in ended.err


def test_the_lease_is_renewed_while_the_command_runs(
    agent: Agent, hearth: Hearth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.cli.temporary_lease._RENEW_S", 0.02)
    assert hearth("exec", "small", "--socket", agent.socket, "--", "sleep", "0.5").code == 0
    assert agent.engine.leases.renewals > 1


def test_options_of_the_command_are_its_own(agent: Agent, hearth: Hearth) -> None:
    hearth("exec", "small", "--socket", agent.socket, "--", "echo", "--wait", "-n")
    assert agent.engine.executed == [("hearth-small-1", ("echo", "--wait", "-n"))]
