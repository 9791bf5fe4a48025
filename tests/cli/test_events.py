"""`hearth events`: the latest events, the events of one VM, and new events over a restart of the agent."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

from agent.cli.exit_codes import ExitCode
from agent.domain.events import Event, EventKind
from tests.api.real_engine import NOW_S, RealEngine
from tests.cli.conftest import Agent, Ended, start

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Hearth = Callable[..., Ended]


def engine_with(*vms: str) -> RealEngine:
    events = (Event(EventKind.VM_READY, NOW_S, vm=vm, pool="small", duration_s=3.5) for vm in vms)
    return RealEngine(events=tuple(events))


def test_latest_events_are_shown_oldest_first(tmp_path: Path, hearth: Hearth) -> None:
    with Agent(tmp_path, engine_with("a", "b", "a", "c")) as agent:
        ended = hearth("events", "-n", 2, "--socket", agent.socket)
        as_json = hearth("events", "--json", "--vm", "a", "--socket", agent.socket)
    first, second = ended.out.splitlines()
    assert first == "01-15 08:00:00Z info    vm-ready vm=a pool=small duration_s=3.5"
    assert "vm=c" in second
    assert [json.loads(line)["number"] for line in as_json.out.splitlines()] == [1, 3]


def test_events_are_followed_over_agent_restart(tmp_path: Path) -> None:
    engine = engine_with("a")
    with Agent(tmp_path, engine) as agent:
        process = start("events", "-f", "--json", "--socket", agent.socket)
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["vm"] == "a"

        async def add_event(engine: RealEngine) -> None:
            await engine.commit(Event(EventKind.VM_GONE, NOW_S, vm="b"))

        agent.call(add_event)
        assert json.loads(process.stdout.readline())["vm"] == "b"
    assert "does not answer" in process.stderr.readline()
    with Agent(tmp_path, engine) as agent:
        agent.call(lambda engine: engine.commit(Event(EventKind.VM_GONE, NOW_S, vm="c")))
        assert json.loads(process.stdout.readline())["vm"] == "c"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    assert process.returncode == ExitCode.OK
