"""The doctor with tools that hang, fail or are missing, and its fixes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from agent.host.doctor import doctor as module
from agent.host.doctor.doctor import Doctor, build_doctor
from agent.host.doctor.model import Check, CheckResult, Fix, Readings, Severity, Subject, passed
from agent.host.doctor.readings import CommandSource, FunctionSource, as_user
from agent.processes.command import CommandFailedError, CommandRunner
from tests.host.doctor.cases import subject

if TYPE_CHECKING:
    from pathlib import Path

    from agent.host.doctor.readings import Source


def show_output(readings: Readings, _: Subject) -> CheckResult:
    return passed(readings["tool"].text)


CHECK = Check("tool", "Tool", "ToolBroken", ("tool",), show_output)


def doctor(source: Source) -> Doctor:
    return Doctor(subject, CommandRunner(), (CHECK,), {"tool": source})


def script(folder: Path, text: str) -> tuple[str, ...]:
    path = folder / "tool"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return (str(path),)


async def test_reading_contains_both_streams_of_a_tool(tmp_path: Path) -> None:
    argv = script(tmp_path, "echo $LC_ALL; echo err >&2; exit 3")
    (found,) = await doctor(CommandSource(lambda _: argv)).run_checks()
    assert found.result.message == "C\nerr"


async def test_result_is_unknown_when_a_reading_fails(tmp_path: Path) -> None:
    def fails(_: Subject) -> str:
        raise PermissionError(13, "Permission denied", "/var/db/dhcpd_leases")

    hangs = script(tmp_path, "trap '' TERM; sleep 60")
    sources: dict[str, Source] = {
        "did not end within 0.2 s": CommandSource(lambda _: hangs, timeout_s=0.2),
        "nosuchtool": CommandSource(lambda _: ("nosuchtool",)),
        "Permission denied": FunctionSource(fails),
    }
    for reason, source in sources.items():
        (found,) = await doctor(source).run_checks()
        assert found.result.severity is Severity.UNKNOWN
        assert reason in found.result.message


async def test_doctor_runs_only_the_named_checks() -> None:
    runs = []
    source = FunctionSource(lambda _: runs.append(1) or "x")  # type: ignore[func-returns-value]
    assert await doctor(source).run_checks(frozenset({"other"})) == []
    assert runs == []


async def test_fix_runs_its_commands_and_reports_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIX_TIMEOUT_S", 5)
    doctor_of_tools = doctor(FunctionSource(lambda _: ""))
    await doctor_of_tools.apply_fix(Fix((("touch", str(tmp_path / "a")), ("touch", str(tmp_path / "b")))))
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
    with pytest.raises(CommandFailedError, match="cannot touch|No such file"):
        await doctor_of_tools.apply_fix(Fix((("touch", str(tmp_path / "no" / "such")),)))


def test_fix_is_shown_as_a_shell_command() -> None:
    fix = Fix((("pmset", "-a", "sleep", "0"), ("defaults", "write", "x y", "k")))
    assert str(fix) == "sudo pmset -a sleep 0 && sudo defaults write 'x y' k"
    assert str(Fix((("security", "x"),), root=False)) == "security x"


def test_command_runs_in_the_users_session_under_sudo() -> None:
    assert as_user(("security", "x"), subject(root=False)) == ("security", "x")
    assert as_user(("security", "x"), subject(root=True, uid=0)) == ("security", "x")
    behind_sudo = as_user(("security", "x"), subject(root=True))
    assert behind_sudo == ("/bin/launchctl", "asuser", "501", "/usr/bin/sudo", "-n", "-u", "ci", "security", "x")


async def test_doctor_runs_on_this_host(tmp_path: Path) -> None:
    here = subject(hypervisor="qemu", data_dir=tmp_path, vm_dirs=(tmp_path,), uid=os.getuid())
    found = await build_doctor(lambda: here, CommandRunner()).run_checks()
    room = next(finding for finding in found if finding.check.name == "disk-space")
    assert room.result.severity is not Severity.UNKNOWN
    assert "GiB free" in room.result.evidence
