"""`hearth exec`: the guest's exit code and output, and the release of the VM after success, errors and signals."""

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
from agent.domain.events import EventKind
from agent.domain.states import VmState
from tests.cli.conftest import Agent, Ended, InterruptAt, start

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.api.real_engine import RealEngine

    Hearth = Callable[..., Ended]


def is_released(agent: Agent) -> bool:
    return not agent.engine.leases and agent.engine.vms["hearth-small-1"].state is VmState.STOPPING


def test_exec_returns_guest_exit_code_and_output(agent: Agent) -> None:
    process = start("exec", "small", "--socket", agent.socket, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert process.communicate(timeout=20) == ("out\n", "err\n")
    assert process.returncode == 7
    assert agent.engine.guests.executed == [("hearth-small-1", ("sh", "-c", "echo out; echo err >&2; exit 7"))]
    assert is_released(agent)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_exec_releases_vm_on_signal(agent: Agent, number: signal.Signals) -> None:
    async def wait_for_exec(engine: RealEngine) -> None:
        async with asyncio.timeout(10):
            await engine.guests.exec_requested.wait()

    process = start("exec", "small", "--socket", agent.socket, "--", "sleep", "1000")
    agent.call(wait_for_exec)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (ExitCode.INTERRUPTED, "", "")
    assert is_released(agent)


def test_exec_cancels_lease_request_on_ctrl_c(agent: Agent) -> None:
    async def wait_for_request(engine: RealEngine) -> None:
        await engine.wait_for_request()

    async def wait_for_cancellation(engine: RealEngine) -> int:
        async with asyncio.timeout(10):
            await engine.request_refused.wait()
        return len(engine.parts.view.queue.requests)

    async def make_vm_unavailable(engine: RealEngine) -> None:
        await engine.move_vm("hearth-small-1", VmState.STOPPING)

    agent.call(make_vm_unavailable)
    process = start("exec", "small", "--socket", agent.socket, "--", "true")
    agent.call(wait_for_request)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == ExitCode.INTERRUPTED
    assert agent.call(wait_for_cancellation) == 0
    assert not agent.engine.leases


def test_exec_releases_lease_whose_answer_was_lost(agent: Agent) -> None:
    async def wait_for_grant(engine: RealEngine) -> None:
        async with asyncio.timeout(10):
            await engine.guests.address_requested.wait()

    agent.engine.guests.address_hangs = True
    process = start("exec", "small", "--socket", agent.socket, "--", "true")
    agent.call(wait_for_grant)
    assert agent.engine.leases
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == ExitCode.INTERRUPTED
    assert is_released(agent)


def test_ctrl_c_does_not_interrupt_release(agent: Agent) -> None:
    is_releasing, may_release = threading.Event(), asyncio.Event()
    desk = agent.engine.parts.leases
    release = desk.release

    async def release_slowly(lease_id: str, *, user: str | None = None) -> None:
        is_releasing.set()
        await may_release.wait()
        await release(lease_id, user=user)

    async def allow_release(_: RealEngine) -> None:
        may_release.set()

    desk.release = release_slowly  # type: ignore[method-assign]
    process = start("exec", "small", "--socket", agent.socket, "--", "sh", "-c", "exit 7")
    assert is_releasing.wait(10)
    assert process.stderr is not None
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        assert "releasing the VM" in process.stderr.readline()
    agent.call(allow_release)
    process.communicate(timeout=20)
    assert process.returncode == 7
    assert is_released(agent)


def test_exec_leaves_no_lease_when_interrupted_at_any_line(agent: Agent, hearth: Hearth) -> None:
    """Interrupt the first run at its first line, and each later run some lines later, until a run completes."""

    async def make_ready_again(engine: RealEngine) -> None:
        await engine.move_vm("hearth-small-1", VmState.READY)

    for moment in itertools.count(1, 1 if os.environ.get("HEARTH_SLOW") else 5):
        interrupt = InterruptAt(moment, temporary_lease, client, execute, exec_client, interrupts)
        sys.settrace(interrupt)
        try:
            ended = hearth("exec", "small", "--socket", agent.socket, "--", "sh", "-c", "exit 7")
        finally:
            sys.settrace(None)
        assert not agent.engine.leases, f"the interrupt at line {moment} left a lease"
        if interrupt.passed < moment:
            assert (ended.code, moment > 100) == (7, True)
            break
        assert ended.code in (7, ExitCode.INTERRUPTED)
        agent.call(make_ready_again)


def test_exec_forwards_input_and_output_while_running(agent: Agent) -> None:
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
    assert is_released(agent)


def test_exec_ends_when_its_reader_has_ended(agent: Agent) -> None:
    process = start("exec", "small", "--socket", agent.socket, "--", "yes")
    assert process.stdout is not None
    assert process.stdout.readline() == "y\n"
    process.stdout.close()
    assert process.wait(20) == ExitCode.BROKEN_PIPE
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert is_released(agent)


def test_exec_waits_for_paused_reader(agent: Agent, hearth: Hearth, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a paused `less`. The pause is longer than the agent waits for a silent client."""
    monkeypatch.setattr(exec_stream, "SILENCE_S", 0.3)
    monkeypatch.setattr(exec_client, "_KEEPALIVE_S", 0.05)
    wrote: list[int] = []

    def write(frame: bytes) -> None:
        if not wrote:
            threading.Event().wait(0.9)
        wrote.append(len(frame) - 1)

    monkeypatch.setattr(exec_client, "_write", write)
    ended = hearth("exec", "small", "--socket", agent.socket, "--", "sh", "-c", "yes | head -c 20000000; exit 7")
    assert (ended.code, ended.err, sum(wrote)) == (7, "", 20_000_000)
    assert is_released(agent)


def test_exec_fails_with_125_when_disk_is_full(agent: Agent) -> None:
    command = [sys.executable, "-m", "agent", "exec", "small", "--socket", str(agent.socket), "--", "echo", "out"]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=20, check=False)
    assert ended.returncode == ExitCode.EXEC_FAILED
    assert "the command's output cannot be written: No space left on device" in ended.stderr
    assert is_released(agent)


def test_exec_fails_with_125_on_timeout(agent: Agent, hearth: Hearth) -> None:
    ended = hearth("exec", "small", "--timeout", "0.1s", "--socket", agent.socket, "--", "sleep", "1000")
    assert ended.code == ExitCode.EXEC_FAILED
    assert "`sleep` did not end within 0.1 s" in ended.err
    assert is_released(agent)


def test_exec_fails_with_125_for_unknown_pool(agent: Agent, hearth: Hearth) -> None:
    ended = hearth("exec", "other", "--socket", agent.socket, "--", "true")
    assert ended.code == ExitCode.EXEC_FAILED
    assert "there is no pool 'other'" in ended.err


def test_exec_renews_lease_while_running(agent: Agent, hearth: Hearth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.cli.temporary_lease._RENEW_S", 0.02)
    assert hearth("exec", "small", "--socket", agent.socket, "--", "sleep", "0.5").code == 0
    assert sum(event.kind is EventKind.LEASE_RENEWED for event in agent.engine.events) > 1


def test_exec_passes_options_to_command(agent: Agent, hearth: Hearth) -> None:
    hearth("exec", "small", "--socket", agent.socket, "--", "echo", "--wait", "-n")
    assert agent.engine.guests.executed == [("hearth-small-1", ("echo", "--wait", "-n"))]
