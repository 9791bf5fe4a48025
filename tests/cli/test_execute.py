"""`hearth exec`: the guest's exit code and output, and a VM that is given back however it ends."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest

from agent.cli.exits import Exit
from agent.domain.states import VmState
from tests.cli.conftest import Agent, Ended, start

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
    assert (process.returncode, out, err) == (Exit.INTERRUPTED, "", "")
    assert given_back(agent)


def test_a_command_that_takes_too_long_is_hearths_failure(agent: Agent, hearth: Hearth) -> None:
    ended = hearth("exec", "small", "--timeout", "0.1s", "--socket", agent.socket, "--", "sleep", "1000")
    assert ended.code == Exit.EXEC_FAILED
    assert "did not end `sleep` within 0.1 s" in ended.err
    assert given_back(agent)


def test_no_vm_is_hearths_failure_too(agent: Agent, hearth: Hearth) -> None:
    ended = hearth("exec", "other", "--socket", agent.socket, "--", "true")
    assert ended.code == Exit.EXEC_FAILED
    assert "there is no pool 'other'" in ended.err


def test_the_lease_is_renewed_while_the_command_runs(
    agent: Agent, hearth: Hearth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.cli.execute._RENEW_S", 0.02)
    assert hearth("exec", "small", "--socket", agent.socket, "--", "sleep", "0.5").code == 0
    assert agent.engine.leases.renewals > 1


def test_options_of_the_command_are_its_own(agent: Agent, hearth: Hearth) -> None:
    hearth("exec", "small", "--socket", agent.socket, "--", "echo", "--wait", "-n")
    assert agent.engine.executed == [("hearth-small-1", ("echo", "--wait", "-n"))]
