"""`hearth lease` releases a lease that it could not print, unless the user gave the key."""

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

    from tests.api.real_engine import RealEngine

    Hearth = Callable[..., Ended]


async def wait_for_grant(engine: RealEngine) -> None:
    async with asyncio.timeout(10):
        await engine.guests.address_requested.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_lease_is_released_when_answer_is_lost_by_signal(agent: Agent, number: signal.Signals) -> None:
    agent.engine.guests.address_hangs = True
    process = start("lease", "small", "--socket", agent.socket)
    agent.call(wait_for_grant)
    assert agent.engine.leases
    process.send_signal(number)
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == ExitCode.INTERRUPTED
    assert not agent.engine.leases
    assert agent.engine.vms["hearth-small-1"].state is VmState.STOPPING


def test_lease_with_user_key_stays_after_ctrl_c(agent: Agent, hearth: Hearth) -> None:
    agent.engine.guests.address_hangs = True
    command = ("lease", "small", "--key", "mine", "--holder", "job-1", "--socket", agent.socket)
    process = start(*command)
    agent.call(wait_for_grant)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == ExitCode.INTERRUPTED
    (lease,) = agent.engine.leases
    assert f"lease      {lease}" in hearth(*command).out


def test_lease_is_printed_or_released_when_interrupted(agent: Agent, hearth: Hearth) -> None:
    """Interrupt the first run at its first line, and each later run some lines later, until a run completes."""

    async def make_ready_again(engine: RealEngine) -> None:
        for lease in tuple(engine.leases):
            await engine.parts.leases.release(lease)
        await engine.move_vm("hearth-small-1", VmState.READY)

    for moment in itertools.count(1, 1 if os.environ.get("HEARTH_SLOW") else 3):
        interrupt = InterruptAt(moment, temporary_lease, client, leases, interrupts)
        sys.settrace(interrupt)
        try:
            ended = hearth("lease", "small", "--socket", agent.socket)
        finally:
            sys.settrace(None)
        held = list(agent.engine.leases)
        assert all(f"hearth release {lease}" in ended.out for lease in held), f"interrupt at line {moment}"
        assert len(held) == 1 or ended.code == ExitCode.INTERRUPTED
        if interrupt.passed < moment:
            assert (ended.code, moment > 50) == (ExitCode.OK, True)
            break
        agent.call(make_ready_again)


def test_lease_is_released_when_it_cannot_be_printed(agent: Agent) -> None:
    command = [sys.executable, "-m", "agent", "lease", "small", "--socket", str(agent.socket)]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=20, check=False)
    assert ended.returncode == ExitCode.FAILURE
    assert not agent.engine.leases
    assert agent.engine.vms["hearth-small-1"].state is VmState.STOPPING


def test_refused_lease_takes_no_vm(agent: Agent, hearth: Hearth) -> None:
    ended = hearth("lease", "other", "--socket", agent.socket)
    assert ended.code == ExitCode.NOT_FOUND
    assert agent.engine.vms["hearth-small-1"].state is VmState.READY
