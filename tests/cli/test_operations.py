"""`hearth cordon`, `uncordon`, `drain`, `rollout` and `vms why` against an API server."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.domain.events import Event, EventKind
from agent.domain.model import Mode
from agent.domain.names import vm_name
from tests.api.real_engine import SERVING, RealEngine, vm
from tests.cli.conftest import Agent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Ended


def test_host_is_cordoned_and_uncordoned(agent: Agent, hearth: Callable[..., Ended]) -> None:
    ended = hearth("cordon", "--reason", "kernel", "--socket", agent.socket, "--json")
    assert ended.code == 0
    assert (json.loads(ended.out)["mode"], json.loads(ended.out)["reason"]) == ("cordoned", "kernel")
    agent.call(lambda engine: engine.reconcile())
    status = hearth("status", "--socket", agent.socket).out
    assert "Cordoned is true" in status
    assert "kernel" in status
    assert hearth("uncordon", "--socket", agent.socket).out == "this host grants leases\n"
    agent.call(lambda engine: engine.reconcile())
    assert "Cordoned is true" not in hearth("status", "--socket", agent.socket).out


def test_drain_waits_for_the_last_vm(tmp_path: Path, hearth: Callable[..., Ended]) -> None:
    engine = RealEngine(*(vm(vm_name("small", f"{number:026}")) for number in range(2)), runs=True)
    with Agent(tmp_path, engine) as agent:
        ended = hearth("drain", "--wait", "--socket", agent.socket)
        assert (ended.code, ended.out) == (0, "this host is empty\n")
    assert engine.parts.store.state.mode.mode is Mode.DRAINING
    assert not engine.vms


def test_drain_timeout_is_reported(agent: Agent, hearth: Callable[..., Ended]) -> None:
    ended = hearth("drain", "--wait", "--timeout", "0.1s", "--socket", agent.socket)
    assert ended.code == 1
    assert "2 VMs remain, 0 of them leased" in ended.err


def test_rollout_is_shown_undone_and_retried(agent: Agent, hearth: Callable[..., Ended]) -> None:
    agent.call(lambda engine: engine.put(replace(SERVING, previous="sha256:" + "c" * 64)))
    ended = hearth("rollout", "status", "--socket", agent.socket)
    assert ended.code == 0
    assert "small" in ended.out
    assert "serving" in ended.out
    assert hearth("rollout", "retry", "small", "--socket", agent.socket).code == 6
    undone = hearth("rollout", "undo", "small", "--reason", "builds fail", "--socket", agent.socket)
    assert "pool small is rolled-back: undone: builds fail" in undone.out
    assert "pulling" in hearth("rollout", "retry", "small", "--socket", agent.socket).out
    assert hearth("rollout", "undo", "nope", "--socket", agent.socket).code == 4


def test_why_shows_timeline_of_vm_that_is_gone(agent: Agent, hearth: Callable[..., Ended]) -> None:
    name = vm_name("small", "01jx0000000000000000000000")
    life = (
        Event(EventKind.VM_CREATING, 1_800_000_000.0, vm=name, pool="small", image="sha256:" + "a" * 64),
        Event(EventKind.VM_READY, 1_800_000_007.5, vm=name, pool="small", duration_s=7.5),
        Event(EventKind.LEASE_GRANTED, 1_800_000_010.0, vm=name, detail="to job-4711", duration_s=0.0),
        Event(EventKind.VM_FAILED, 1_800_000_090.0, vm=name, cause="exited", detail="its process ended with code 1"),
        Event(EventKind.VM_GONE, 1_800_000_091.0, vm=name, duration_s=0.9),
    )

    async def add_events(engine: RealEngine) -> None:
        await engine.commit(*life)
        folder = engine.parts.evidence.root / name
        folder.mkdir(parents=True)
        (folder / "console.log").write_text("panic")

    agent.call(add_events)
    ended = hearth("vms", "--socket", agent.socket, "why", name)
    assert ended.code == 0
    assert "It failed after 1m30s: exited: its process ended with code 1. It is gone." in " ".join(ended.out.split())
    kinds = [line.split()[3] for line in ended.out.splitlines() if line.startswith("2027")]
    assert kinds == ["vm-creating", "vm-ready", "lease-granted", "vm-failed", "vm-gone"]
    assert "console.log  5 B" in ended.out
    document = json.loads(hearth("vms", "--socket", agent.socket, "why", name, "--json").out)
    assert [event["kind"] for event in document["events"]] == kinds


def test_why_of_unknown_vm_fails(agent: Agent, hearth: Callable[..., Ended]) -> None:
    ended = hearth("vms", "--socket", agent.socket, "why", "hearth-small-never")
    assert ended.code == 4
    assert "the journal has no event of a VM hearth-small-never" in ended.err
