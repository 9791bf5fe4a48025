"""Each check, evaluated on recorded outputs of the tools of macOS, and on garbage."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.domain.model import ConditionStatus
from agent.host.doctor import checks, readings
from agent.host.doctor.model import Check, Finding, Reading, Severity, condition_of, decide
from tests.host.doctor.cases import ERROR, LINUX_CASES, MAC_CASES, NOW_S, OK, RECORDED, WARNING, Case, subject

PAGE = Path(__file__).parents[3] / "docs" / "doctor.md"
GARBAGE = (
    "",
    "\x00\xff",
    "}{",
    "-1",
    "<plist><dict><key>bootpd</key><string>x</string></dict></plist>",
    '{"body": []}',
)


def check_of(name: str, checks: tuple[Check, ...]) -> Check:
    return next(check for check in checks if check.name == name)


def find(case: Case, checks: tuple[Check, ...]) -> Finding:
    check = check_of(case.check, checks)
    assert set(case.readings) == {*check.required, *check.optional}, "a case has exactly the readings of its check"
    found = decide(check, case.readings, subject(**case.changes))
    assert found is not None
    return found


@pytest.mark.parametrize("case", MAC_CASES, ids=str)
def test_check_of_a_mac(case: Case) -> None:
    assert_case(case, checks.MAC)


@pytest.mark.parametrize("case", LINUX_CASES, ids=str)
def test_check_of_a_linux_host(case: Case) -> None:
    assert_case(case, checks.LINUX)


def assert_case(case: Case, checks: tuple[Check, ...]) -> None:
    found = find(case, checks)
    result = found.result
    assert (result.severity, case.message.lower() in result.message.lower()) == (case.severity, True), result
    if found.is_failing:
        assert result.remedy, "a failing check has a remedy"
    condition = condition_of(found, NOW_S)
    assert condition.problem == (case.severity is ERROR)
    assert (condition.status is ConditionStatus.TRUE) == found.is_failing
    assert condition.type == found.check.condition


def test_cases_cover_each_check_and_each_recording() -> None:
    for system_checks, cases in ((checks.MAC, MAC_CASES), (checks.LINUX, (*LINUX_CASES, *MAC_CASES))):
        for check in system_checks:
            seen = {case.severity for case in cases if case.check == check.name}
            assert OK in seen, check.name
            assert seen & {WARNING, ERROR}, check.name
    text = (Path(__file__).with_name("cases.py")).read_text() + (RECORDED.parent / "test_host_info.py").read_text()
    assert [path.name for path in RECORDED.iterdir() if path.name not in text] == []


@pytest.mark.parametrize("check", [*checks.MAC, *checks.LINUX], ids=lambda check: check.name)
@pytest.mark.parametrize("hypervisor", ["tart", "anka", "qemu"])
def test_check_survives_garbage_and_is_unknown_on_a_read_error(check: Check, hypervisor: str) -> None:
    names = {*check.required, *check.optional}
    for text in GARBAGE:
        for code in (0, 1):
            decide(check, dict.fromkeys(names, Reading(text, text, code)), subject(hypervisor=hypervisor))
    found = decide(check, dict.fromkeys(names, Reading(error="it hung")), subject(hypervisor=hypervisor))
    own_tool = check.name in ("tart", "anka", "qemu", "keychain")
    assert found is None or own_tool or not found.is_failing
    if check.required and found is not None:
        assert found.result.severity is Severity.UNKNOWN
        assert "it hung" in found.result.message


def test_check_is_skipped_for_other_hypervisors() -> None:
    for name in ("session", "keychain", "tart"):
        check = check_of(name, checks.MAC)
        names = {*check.required, *check.optional}
        assert decide(check, dict.fromkeys(names, Reading("x")), subject(hypervisor="anka")) is None


def test_readings_and_sources_match() -> None:
    for system_checks, own in ((checks.MAC, readings.MAC), (checks.LINUX, readings.LINUX)):
        read = {name for check in system_checks for name in (*check.required, *check.optional)}
        assert read <= {*readings.COMMON, *own}
        assert set(own) <= read
        names, conditions = {c.name for c in system_checks}, {c.condition for c in system_checks}
        assert len(names) == len(conditions) == len(system_checks)


def test_checks_are_documented_with_their_conditions() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| `([A-Za-z]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    documented = {(check.name, check.condition) for check in (*checks.MAC, *checks.LINUX)}
    assert set(rows) == documented
    assert len(rows) == len(documented)


def test_fixes_run_only_harmless_commands() -> None:
    """No fix ends a process, removes a file or a snapshot, or changes a password."""
    fixes = [find(case, checks.MAC).result.fix for case in MAC_CASES]
    commands = {command[:2] for fix in fixes if fix for command in fix.commands}
    assert commands == {
        ("/usr/bin/pmset", "-a"), ("/usr/bin/defaults", "write"), ("/usr/bin/mdutil", "-i"),
        ("/usr/bin/tmutil", "addexclusion"), ("/usr/bin/security", "set-keychain-settings"),
        ("/usr/sbin/systemsetup", "-setusingnetworktime"), ("/usr/bin/sntp", "-sS"),
    }  # fmt: skip
