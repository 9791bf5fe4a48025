"""`hearth doctor`: the report, the exit code, and fixes that ask first."""

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
def mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with a fault that a fix mends, one that only a person can remedy, and one that is none."""
    marker = tmp_path / "mended"

    def fault(_: Readings, __: Subject) -> CheckResult:
        fix = Fix((("touch", str(marker)),), restart=True)
        return passed("awake") if marker.exists() else CheckResult(ERROR, "it sleeps", "sleep 1", "let it not", fix)

    def by_hand(_: Readings, __: Subject) -> CheckResult:
        return CheckResult(WARNING, "it is old", "13.6", "update it")

    checks = (
        Check("sleep", "Sleep", "SleepEnabled", (), fault),
        Check("macos", "macOS", "MacosUnsupported", ("x",), by_hand),
        Check("kvm", "KVM", "KvmUnavailable", (), lambda _, __: passed("fast", "12 ms")),
    )
    looking = Doctor(lambda: subject(root=True, uid=0), CommandRunner(), checks, {"x": FunctionSource(lambda _: "")})
    monkeypatch.setattr(command, "_build_doctor", lambda _: looking)
    return marker


def test_the_report_says_what_is_wrong_by_which_evidence_and_what_to_do(hearth: Hearth, mended: Path) -> None:
    ended = hearth("doctor")
    assert ended.code == ExitCode.FAILURE
    assert ended.out.splitlines() == [
        "ERROR   Sleep  it sleeps",
        "               seen: sleep 1",
        "               fix:  let it not",
        f"               run:  sudo touch {mended}",
        "warning macOS  it is old",
        "               seen: 13.6",
        "               fix:  update it",
        "ok      KVM    fast (12 ms)",
        "3 checks, 1 errors, 1 warnings",
    ]


def test_fixes_that_are_agreed_to_are_run_and_looked_at_again(hearth: Hearth, mended: Path) -> None:
    ended = hearth("doctor", "--fix", "--yes")
    assert ended.code == ExitCode.OK
    assert mended.exists()
    assert f"done: sudo touch {mended}; restart the Mac to apply it" in ended.out
    assert ended.out.rstrip().endswith("3 checks, 0 errors, 1 warnings")


def test_without_a_terminal_nothing_is_run_unasked(hearth: Hearth, mended: Path) -> None:
    ended = hearth("doctor", "--fix")
    assert ended.code == ExitCode.USAGE
    assert "add --yes" in " ".join(ended.err.split())
    assert not mended.exists()


def test_for_programs_it_is_json(hearth: Hearth, mended: Path) -> None:
    document = json.loads(hearth("doctor", "--json", "--only", "sleep").out)
    assert document == {
        "ok": False, "fixes": [], "findings": [{
            "check": "sleep", "title": "Sleep", "severity": "error", "message": "it sleeps", "evidence": "sleep 1",
            "remedy": "let it not", "fix": f"sudo touch {mended}", "restart": True,
        }],
    }  # fmt: skip


def test_an_unknown_check_is_a_usage_error(hearth: Hearth, mended: Path) -> None:
    assert hearth("doctor", "--only", "slep").code == ExitCode.USAGE
    assert not mended.exists()
