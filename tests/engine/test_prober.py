"""The prober runs probes at their period, however the guest behaves."""

from __future__ import annotations

import asyncio
import time

from agent.domain.health import Outcome, ProbeResult, Unhealthy
from agent.domain.model import Cause, PoolSpec, ProbeKind, ProbeSpec, Vm, VmSize
from agent.domain.states import VmState
from agent.engine.probe_runner import ProbeRunner
from agent.engine.prober import Prober, ProbeResults

PERIOD_S, TIMEOUT_S, FAILURES = 0.4, 0.35, 3
PROBE = ProbeSpec(ProbeKind.AGENT, period_s=PERIOD_S, timeout_s=TIMEOUT_S, failures=FAILURES)
POOL = PoolSpec("small", "layout:1", probes=(PROBE,))
VM = Vm("hearth-small-a", "small", "sha256:1", VmState.READY, VmSize(), 0, 0)


class HungGuest(ProbeRunner):
    """Lets every probe wait for its whole timeout."""

    def __init__(self) -> None:
        """Needs no hypervisor."""

    async def run(self, vm: str, probe: ProbeSpec, *, timeout_s: float) -> ProbeResult:
        began_s = time.monotonic()
        await asyncio.sleep(timeout_s)
        return ProbeResult(probe.name, Outcome.FAIL, "no answer", time.time(), time.monotonic() - began_s)


class FirstReport:
    """Stores the first report."""

    def __init__(self) -> None:
        self.found: asyncio.Future[Unhealthy] = asyncio.get_running_loop().create_future()

    async def startup_passed(self, vm: str) -> None:
        raise AssertionError(f"{vm} was ready already")

    async def unhealthy(self, vm: str, unhealthy: Unhealthy) -> None:
        if not self.found.done():
            self.found.set_result(unhealthy)


async def test_hung_guest_is_found_after_its_periods_and_one_timeout() -> None:
    reports = FirstReport()
    prober = Prober(HungGuest(), reports, ProbeResults(), on_result=lambda *_: None, clock=time.time)
    began_s = time.monotonic()
    prober.sync([VM], lambda _: POOL, frozenset())
    try:
        unhealthy = await asyncio.wait_for(reports.found, 10)
    finally:
        await prober.close()

    budget_s, if_waits_added_up_s = FAILURES * PERIOD_S + TIMEOUT_S, FAILURES * (PERIOD_S + TIMEOUT_S)
    assert unhealthy.cause is Cause.PROBE_FAILED
    assert budget_s - 0.05 <= time.monotonic() - began_s < (budget_s + if_waits_added_up_s) / 2
