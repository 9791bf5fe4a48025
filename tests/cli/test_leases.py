"""`hearth lease`: one that nobody is told of is given back, unless its key is the user's own."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.cli import client, interrupts, leases, temporary_lease
from agent.cli.exit_codes import ExitCode
from agent.domain.states import VmState
from tests.cli.conftest import Agent, Ended, InterruptAt, start

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.api.memory_engine import MemoryEngine

    Hearth = Callable[..., Ended]


async def granted(engine: MemoryEngine) -> None:
    async with asyncio.timeout(10):
        await engine.address_asked.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_lease_was_told_gives_it_back(agent: Agent, number: signal.Signals) -> None:
    agent.engine.address_hangs = True
    process = start("lease", "small", "--socket", agent.socket)
    agent.ask(granted)
    assert agent.engine.leases.held
    process.send_signal(number)
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == ExitCode.INTERRUPTED
    assert not agent.engine.leases.held
    assert agent.engine.vms["hearth-small-1"].state is VmState.STOPPING


def test_a_lease_under_a_key_of_the_users_own_stays(agent: Agent, hearth: Hearth) -> None:
    agent.engine.address_hangs = True
    ask = ("lease", "small", "--key", "mine", "--holder", "job-1", "--socket", agent.socket)
    process = start(*ask)
    agent.ask(granted)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == ExitCode.INTERRUPTED
    assert list(agent.engine.leases.held) == ["lease-1"]
    assert "lease      lease-1" in hearth(*ask).out


def test_there_is_no_moment_at_which_ctrl_c_leaves_a_lease_untold(agent: Agent, hearth: Hearth) -> None:
    """Interrupts one run at the first line it reaches, the next some lines later, until one gets through."""

    async def another(engine: MemoryEngine) -> None:
        for lease in tuple(engine.leases.held):
            await engine.leases.release(lease)
        engine.become("hearth-small-1", VmState.READY)

    for moment in itertools.count(1, 1 if os.environ.get("HEARTH_SLOW") else 3):
        interrupt = InterruptAt(moment, temporary_lease, client, leases, interrupts)
        sys.settrace(interrupt)
        try:
            ended = hearth("lease", "small", "--socket", agent.socket)
        finally:
            sys.settrace(None)
        held = list(agent.engine.leases.held)
        assert all(f"hearth release {lease}" in ended.out for lease in held), f"line {moment} left a lease untold"
        assert len(held) == 1 or ended.code == ExitCode.INTERRUPTED
        if interrupt.passed < moment:
            assert (ended.code, moment > 50) == (ExitCode.OK, True)
            break
        agent.ask(another)


def test_a_lease_that_cannot_be_told_is_given_back(agent: Agent) -> None:
    command = [sys.executable, "-m", "agent", "lease", "small", "--socket", str(agent.socket)]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=20, check=False)
    assert ended.returncode == ExitCode.FAILURE
    assert not agent.engine.leases.held
    assert agent.engine.vms["hearth-small-1"].state is VmState.STOPPING


def test_a_refusal_takes_no_vm(agent: Agent, hearth: Hearth) -> None:
    ended = hearth("lease", "other", "--socket", agent.socket)
    assert ended.code == ExitCode.NOT_FOUND
    assert agent.engine.vms["hearth-small-1"].state is VmState.READY
