"""Conditions of failing checks are posted and cleared; nothing else is posted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.engine.conditions import ConditionBoard
from agent.host.doctor.doctor import Doctor
from agent.host.doctor.model import ERROR, OK, UNKNOWN, WARNING, Check, CheckResult, Readings, Severity, Subject
from agent.host.host_monitor import HostMonitor
from agent.host.vitals import Vitals, VitalsSampler
from agent.processes.command import CommandRunner
from tests.host.doctor.cases import subject

if TYPE_CHECKING:
    from agent.domain.model import Condition


class Host:
    """A host with one check; the test sets its severity."""

    def __init__(self) -> None:
        self.severity: Severity = OK
        self.board = ConditionBoard()
        self.now_s = 100.0
        check = Check("sleep", "Sleep", "SleepEnabled", (), self._evaluate)
        doctor = Doctor(subject, CommandRunner(), (check,), {})
        self.monitor = HostMonitor(
            doctor, self.board.post, period_s=60, vitals=VitalsSampler(Vitals), clock=lambda: self.now_s
        )

    def _evaluate(self, _: Readings, __: Subject) -> CheckResult:
        return CheckResult(self.severity, "it sleeps after 10 minutes", remedy="let it never sleep")

    async def look(self, severity: Severity) -> list[tuple[str, str, bool]]:
        self.severity = severity
        self.now_s += 60
        await self.monitor.run_checks()
        return [(condition.type, str(condition.status), condition.problem) for condition in self.board.all()]

    def condition(self) -> Condition:
        return self.board.as_mapping()["SleepEnabled"]


async def test_failing_check_is_a_condition_until_it_passes() -> None:
    host = Host()
    assert await host.look(OK) == []
    assert await host.look(UNKNOWN) == []
    assert await host.look(WARNING) == [("SleepEnabled", "true", False)]
    assert await host.look(ERROR) == [("SleepEnabled", "true", True)]
    assert host.condition().message == "it sleeps after 10 minutes; let it never sleep"
    since_s = host.condition().since_s
    assert await host.look(ERROR) == [("SleepEnabled", "true", True)]
    assert host.condition().since_s == since_s
    assert await host.look(UNKNOWN) == [("SleepEnabled", "true", True)], "an unknown result changes nothing"
    assert await host.look(OK) == [("SleepEnabled", "false", False)]
    assert host.condition().since_s == host.now_s
