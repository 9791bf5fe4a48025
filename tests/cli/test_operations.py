"""`hearth cordon`, `uncordon`, `drain` and `rollout` against a real API."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.domain.model import HostMode, Mode

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Agent, Ended


def test_cordon_and_uncordon(agent: Agent, hearth: Callable[..., Ended]) -> None:
    ended = hearth("cordon", "--reason", "kernel", "--socket", agent.socket, "--json")
    assert ended.code == 0
    assert (json.loads(ended.out)["mode"], json.loads(ended.out)["reason"]) == ("cordoned", "kernel")
    status = hearth("status", "--socket", agent.socket).out
    assert "Cordoned is true" in status
    assert "kernel" in status
    assert hearth("uncordon", "--socket", agent.socket).out == "this host gives leases\n"
    assert "Cordoned is true" not in hearth("status", "--socket", agent.socket).out


def test_drain_waits_for_the_last_vm(agent: Agent, hearth: Callable[..., Ended]) -> None:
    ended = hearth("drain", "--wait", "--socket", agent.socket)
    assert (ended.code, ended.out) == (0, "this host is empty\n")
    assert agent.engine.mode.mode is Mode.DRAINING
    assert not agent.engine.vms


def test_a_drain_that_takes_too_long_is_told(agent: Agent, hearth: Callable[..., Ended]) -> None:
    async def keep(mode: Mode, *, reason: str) -> HostMode:
        return HostMode(mode, reason=reason)

    agent.engine.operations.set_mode = keep  # type: ignore[method-assign]
    ended = hearth("drain", "--wait", "--timeout", "0.1s", "--socket", agent.socket)
    assert ended.code == 1
    assert "2 VMs are left, 0 of them leased" in ended.err


def test_rollouts_are_shown_undone_and_tried_again(agent: Agent, hearth: Callable[..., Ended]) -> None:
    agent.engine.rollouts["small"] = replace(agent.engine.rollouts["small"], previous="sha256:" + "c" * 64)
    ended = hearth("rollout", "status", "--socket", agent.socket)
    assert ended.code == 0
    assert "small" in ended.out
    assert "serving" in ended.out
    assert hearth("rollout", "retry", "small", "--socket", agent.socket).code == 6
    undone = hearth("rollout", "undo", "small", "--reason", "builds fail", "--socket", agent.socket)
    assert "pool small is rolled-back: builds fail" in undone.out
    assert "pulling" in hearth("rollout", "retry", "small", "--socket", agent.socket).out
    assert hearth("rollout", "undo", "nope", "--socket", agent.socket).code == 4
