"""Guests that answer with anything: each odd answer is a failed probe, is bounded, and never hides an unhealthy VM."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import aiohttp
import pytest
from structlog.testing import capture_logs

from agent.domain.health import Outcome, Unhealthy
from agent.domain.model import Cause, Image, Observed, PoolSpec, ProbeKind, ProbeSpec, Vm, VmSize
from agent.domain.states import VmState
from agent.domain.text import DETAIL_LIMIT_BYTES
from agent.engine.observer import DISK_UNKNOWN, Observer
from agent.engine.probe_runner import ProbeRunner
from agent.engine.prober import Prober, ProbeResults
from agent.hypervisors.qemu.agent_messages import VALUE_LIMIT, Decoder, read_exec_result
from agent.hypervisors.simulated import SimulatedHypervisor
from tests.api.memory_images import MemoryImages
from tests.support.scripted_agent import Request, ScriptedAgent, connected_to

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agent.hypervisors.contract import ExecResult
    from agent.hypervisors.qemu.guest_agent import GuestAgent

TIMEOUT_S: Final = 0.3
PING: Final = ProbeSpec(ProbeKind.AGENT, period_s=0.01, timeout_s=TIMEOUT_S, failures=2)
EXEC: Final = ProbeSpec(ProbeKind.EXEC, argv=("true",), period_s=0.01, timeout_s=TIMEOUT_S, failures=2)
DEEP: Final = "[" * 5000 + "]" * 5000
HUGE: Final = "x" * 5_000_000

ODD_ANSWERS: Final = {
    "nothing": "",
    "no JSON": "hello",
    "a number": "1",
    "an array": "[1]",
    "deep": DEEP,
    "deep return": f'{{"return": {DEEP}}}',
    "nested return": '{"return": ' + "[" * 900 + "]" * 900 + "}",
    "deep error": f'{{"error": {DEEP}}}',
    "nested error": '{"error": ' + "[" * 900 + "]" * 900 + "}",
    "huge error": f'{{"error": {{"desc": "{HUGE}"}}}}',
    "escaped huge error": '{"error": {"desc": "' + "\\u0041" * 500_000 + '"}}',
    "error of surrogates": '{"error": {"desc": "\\ud800 \\udfff"}}',
    "error of control characters": '{"error": {"desc": "\\u0000\\u001b[2J\\u202e"}}',
    "error null": '{"error": null}',
    "error array": '{"error": [1, 2]}',
    "neither": '{"answer": 1}',
    "many values": '{"return": [' + "1," * VALUE_LIMIT + "1]}",
    "many messages": '{"return": 1} ' * 20_000,
    "long number": '{"return": ' + "9" * 6000 + "}",
}
"""Answers that are wrong for every request."""

ODD_STATUSES: Final = {
    "return null": "null",
    "return array": "[]",
    "return text": '"exited"',
    "return number": "1e999",
    "no exit code": '{"exited": true}',
    "exited is text": '{"exited": "yes", "exitcode": 0}',
    "exited is deep": f'{{"exited": {"[" * 900 + "]" * 900}, "exitcode": 0}}',
    "exit code infinite": '{"exited": true, "exitcode": 1e999}',
    "exit code Infinity": '{"exited": true, "exitcode": Infinity}',
    "exit code NaN": '{"exited": true, "exitcode": NaN}',
    "exit code text": '{"exited": true, "exitcode": "0"}',
    "exit code fraction": '{"exited": true, "exitcode": 0.0}',
    "exit code false": '{"exited": true, "exitcode": false}',
    "exit code null": '{"exited": true, "exitcode": null}',
    "exit code array": '{"exited": true, "exitcode": [0]}',
    "exit code negative": '{"exited": true, "exitcode": -1}',
    "exit code huge": '{"exited": true, "exitcode": 99999999999999999999999}',
    "signal infinite": '{"exited": true, "signal": 1e999}',
    "signal huge": '{"exited": true, "signal": 99999999999}',
    "output number": '{"exited": true, "exitcode": 0, "out-data": 7}',
    "output no base64": '{"exited": true, "exitcode": 0, "out-data": "***"}',
    "output not ASCII": '{"exited": true, "exitcode": 0, "out-data": "\\u00e9\\ud800"}',
    "output array": '{"exited": true, "exitcode": 0, "err-data": ["YQ=="]}',
}
"""Answers that are wrong for the status of a command."""


class OneGuest(SimulatedHypervisor):
    """A hypervisor whose only guest is a real client of a scripted agent."""

    def __init__(self, agent: GuestAgent) -> None:
        super().__init__()
        self._agent = agent

    async def ping(self, name: str, *, timeout_s: float) -> None:
        """Ping the scripted agent."""
        await self._agent.ping(timeout_s=timeout_s)

    async def execute(self, name: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
        """Run a command by the scripted agent."""
        return await self._agent.execute(argv, timeout_s=timeout_s)


@asynccontextmanager
async def runner_of(answer: str, folder: Path, *, to: str = "") -> AsyncIterator[ProbeRunner]:
    """Yield a probe runner whose guest gives one answer to the request `to`, or to all of them."""

    async def script(request: Request, agent: ScriptedAgent) -> None:
        if not to or request["execute"] == to:
            agent.send_raw(answer.encode() + b"\n")
        else:
            agent.send({"return": {"pid": 7}})

    async with connected_to(script, folder) as (client, _), aiohttp.ClientSession() as http:
        yield ProbeRunner(OneGuest(client), http, clock=time.time)


@pytest.mark.parametrize("answer", ODD_ANSWERS.values(), ids=ODD_ANSWERS)
async def test_odd_answer_is_a_failed_probe(answer: str, tmp_path: Path) -> None:
    async with runner_of(answer, tmp_path) as runner:
        for probe in (PING, EXEC) if '"return"' not in answer else (EXEC,):  # a ping may return anything
            result = await runner.run("vm-1", probe, timeout_s=TIMEOUT_S)
            assert result.outcome is Outcome.FAIL
            assert 0 < len(result.detail.encode()) <= DETAIL_LIMIT_BYTES


@pytest.mark.parametrize("status", ODD_STATUSES.values(), ids=ODD_STATUSES)
async def test_odd_status_of_a_command_is_a_failed_probe(status: str, tmp_path: Path) -> None:
    async with runner_of(f'{{"return": {status}}}', tmp_path, to="guest-exec-status") as runner:
        result = await runner.run("vm-1", EXEC, timeout_s=TIMEOUT_S)
        assert result.outcome is Outcome.FAIL
        assert "agent of vm-1" in result.detail


@pytest.mark.parametrize("pid", ["1e999", '"1"', "null", "[]", "true", "9" * 30])
async def test_odd_pid_of_a_command_is_a_failed_probe(pid: str, tmp_path: Path) -> None:
    async with runner_of(f'{{"return": {{"pid": {pid}}}}}', tmp_path, to="guest-exec") as runner:
        result = await runner.run("vm-1", EXEC, timeout_s=TIMEOUT_S)
        assert (result.outcome, "invalid answer" in result.detail) == (Outcome.FAIL, True)


def test_output_of_60_mib_is_cut_as_it_arrives() -> None:
    """The decoder stores only the part of each stream that is returned."""
    decoder, piece = Decoder(), b"QUFB" * (16 << 10)
    decoder.feed(b'{"return": {"exited": true, "exitcode": 0, "out-data": "')
    tracemalloc.start()
    try:
        for _ in range((60 << 20) // len(piece)):
            decoder.feed(piece)
        [message] = decoder.feed(b'", "err-data": "QQ=="}}\n')
        result = read_exec_result(message["return"])
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result is not None
    assert (len(result.stdout), result.stderr, result.truncated) == (1 << 20, b"A", True)
    assert set(result.stdout) == {ord("A")}
    assert peak_bytes < 16 << 20


class Broken(ProbeRunner):
    """Every probe raises what nothing foresaw, below the runner's own functions."""

    def __init__(self, http: aiohttp.ClientSession, error: Exception) -> None:
        super().__init__(SimulatedHypervisor(), http, clock=time.time)
        self._error = error
        self._kinds = dict.fromkeys(ProbeKind, self._raise)

    async def _raise(self, *_: object) -> tuple[Outcome, str]:
        raise self._error


class Reports:
    """Stores the first report that a VM is unhealthy."""

    def __init__(self) -> None:
        self.found: asyncio.Future[Unhealthy] = asyncio.get_running_loop().create_future()

    async def startup_passed(self, vm: str) -> None:
        """Fail the test."""
        self.found.set_exception(AssertionError(f"{vm} became ready"))

    async def unhealthy(self, vm: str, unhealthy: Unhealthy) -> None:
        """Store a report."""
        if not self.found.done():
            self.found.set_result(unhealthy)


@pytest.mark.parametrize("state", [VmState.STARTING, VmState.READY])
@pytest.mark.parametrize("error", [RecursionError(), OverflowError("x" * 20_000), KeyError(1), MemoryError()])
async def test_exception_of_a_probe_makes_its_vm_unhealthy(state: VmState, error: Exception) -> None:
    pool = PoolSpec("small", "layout:1", probes=(PING,), startup_deadline_s=0.05, startup_period_s=0.01)
    vm = Vm("hearth-small-a", "small", "sha256:1", state, VmSize(), time.time(), time.time())
    reports = Reports()
    async with aiohttp.ClientSession() as http:
        prober = Prober(Broken(http, error), reports, ProbeResults(), on_result=lambda *_: None, clock=time.time)
        prober.sync([vm], lambda _: pool, frozenset())
        try:
            with capture_logs():  # the traceback would be rendered with colours and local variables
                unhealthy = await asyncio.wait_for(reports.found, 10)
        finally:
            await prober.close()
    assert unhealthy.cause is (Cause.PROBE_FAILED if state is VmState.READY else Cause.STARTUP_DEADLINE)
    assert "could not be processed" in unhealthy.reason
    assert len(json.dumps(unhealthy.reason)) < 2 * DETAIL_LIMIT_BYTES


async def test_exception_of_an_observation_is_a_problem_of_the_host() -> None:
    """The last observation stays in use."""

    class Listed(SimulatedHypervisor):
        broken = False

        async def inventory(self) -> tuple[Observed, ...]:
            if self.broken:
                raise RecursionError("x" * 100_000)
            return (Observed("foreign", ours=False, running=True),)

    hypervisor = Listed()
    observer = Observer(hypervisor, MemoryImages(Image("sha256:1")), lambda: DISK_UNKNOWN)
    await observer.observe(frozenset, frozenset)
    hypervisor.broken = True
    with capture_logs() as logs:
        await observer.observe(frozenset, frozenset)
    listing = observer.take_listing()
    assert listing is not None
    assert [vm.name for vm in listing.seen] == ["foreign"]
    assert len(observer.problems["HypervisorResponding"]) <= DETAIL_LIMIT_BYTES
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["observation-raised"]
    hypervisor.broken = False
    await observer.observe(frozenset, frozenset)
    assert observer.problems == {}
