"""`hearth doctor`: the report, the exit code, and the confirmation of fixes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from agent.cli import doctor as command
from agent.cli.exit_codes import ExitCode
from agent.host.doctor.doctor import Doctor
from agent.host.doctor.model import ERROR, WARNING, Check, CheckResult, Fix, Readings, Subject, passed
from agent.host.doctor.readings import FunctionSource
from agent.processes.command import CommandRunner
from tests.host.doctor.cases import subject

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Ended

    Hearth = Callable[..., Ended]


@pytest.fixture
def fix_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Simulate a host with an error that has a fix, a warning without a fix, and a passing check.

    Return the file that the fix creates.
    """
    marker = tmp_path / "fixed"

    def check_sleep(_: Readings, __: Subject) -> CheckResult:
        fix = Fix((("touch", str(marker)),), restart=True)
        return passed("awake") if marker.exists() else CheckResult(ERROR, "it sleeps", "sleep 1", "let it not", fix)

    def check_macos(_: Readings, __: Subject) -> CheckResult:
        return CheckResult(WARNING, "it is old", "13.6", "update it")

    checks = (
        Check("sleep", "Sleep", "SleepEnabled", (), check_sleep),
        Check("macos", "macOS", "MacosUnsupported", ("x",), check_macos),
        Check("kvm", "KVM", "KvmUnavailable", (), lambda _, __: passed("fast", "12 ms")),
    )
    host_doctor = Doctor(
        lambda: subject(root=True, uid=0), CommandRunner(), checks, {"x": FunctionSource(lambda _: "")}
    )
    monkeypatch.setattr(command, "_build_doctor", lambda _: host_doctor)
    return marker


def test_doctor_report_has_evidence_and_fix(hearth: Hearth, fix_marker: Path) -> None:
    ended = hearth("doctor")
    assert ended.code == ExitCode.FAILURE
    assert ended.out.splitlines() == [
        "ERROR   Sleep  it sleeps",
        "               seen: sleep 1",
        "               fix:  let it not",
        f"               run:  sudo touch {fix_marker}",
        "warning macOS  it is old",
        "               seen: 13.6",
        "               fix:  update it",
        "ok      KVM    fast (12 ms)",
        "3 checks, 1 errors, 1 warnings",
    ]


def test_doctor_checks_again_after_fixes(hearth: Hearth, fix_marker: Path) -> None:
    ended = hearth("doctor", "--fix", "--yes")
    assert ended.code == ExitCode.OK
    assert fix_marker.exists()
    assert f"done: sudo touch {fix_marker}; restart the Mac to apply it" in ended.out
    assert ended.out.rstrip().endswith("3 checks, 0 errors, 1 warnings")


def test_doctor_runs_no_fix_without_confirmation(hearth: Hearth, fix_marker: Path) -> None:
    ended = hearth("doctor", "--fix")
    assert ended.code == ExitCode.USAGE
    assert "add --yes" in " ".join(ended.err.split())
    assert not fix_marker.exists()


def test_doctor_prints_json(hearth: Hearth, fix_marker: Path) -> None:
    document = json.loads(hearth("doctor", "--json", "--only", "sleep").out)
    assert document == {
        "ok": False, "fixes": [], "findings": [{
            "check": "sleep", "title": "Sleep", "severity": "error", "message": "it sleeps", "evidence": "sleep 1",
            "remedy": "let it not", "fix": f"sudo touch {fix_marker}", "restart": True,
        }],
    }  # fmt: skip


def test_unknown_check_is_usage_error(hearth: Hearth, fix_marker: Path) -> None:
    assert hearth("doctor", "--only", "slep").code == ExitCode.USAGE
    assert not fix_marker.exists()
