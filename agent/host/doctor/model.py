"""Values of the doctor: readings, checks, results and fixes. Pure."""

from __future__ import annotations

import plistlib
import shlex
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final
from xml.parsers.expat import ExpatError

from agent.domain.model import Condition, ConditionStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


class Severity(StrEnum):
    """Severity of a check result."""

    OK = "ok"
    UNKNOWN = "unknown"  # it could not be read
    WARNING = "warning"  # it costs time or capacity now, or will later
    ERROR = "error"  # the host cannot serve, or soon cannot


@dataclass(frozen=True, slots=True)
class Subject:
    """What the checks depend on: the hypervisor, its folders, and the user of the agent."""

    hypervisor: str  # as configured: tart, anka, qemu, simulated, auto
    data_dir: Path
    vm_dirs: tuple[Path, ...]  # folders of clones and images
    disk_reserve_bytes: int
    user: str  # user of the agent
    uid: int
    home: Path
    tool: str  # program of the hypervisor; empty if it has none
    version: str  # version of Hearth
    root: bool  # whether the checks run as root
    in_agent: bool  # whether the checks run in the agent, not in the command line
    now_s: float

    @property
    def for_tart(self) -> bool:
        """Whether the hypervisor is Tart: its VMs need the login session of a user at the screen."""
        return self.hypervisor == "tart"


@dataclass(frozen=True, slots=True)
class Reading:
    """Output of a tool. `error` is the reason why it could not be read; then the other fields are empty."""

    out: str = ""
    err: str = ""
    exit_code: int = 0
    error: str = ""

    @property
    def text(self) -> str:
        """Both streams, because several tools of macOS print their result to stderr."""
        return "\n".join(part for part in (self.out.strip(), self.err.strip()) if part)

    def plist(self) -> Mapping[str, Any]:
        """Return the property list in the output; empty if there is none."""
        try:
            read = plistlib.loads(self.out.encode())
        except (plistlib.InvalidFileException, ExpatError, ValueError):
            return {}
        return read if isinstance(read, dict) else {}


Readings = dict[str, Reading]


@dataclass(frozen=True, slots=True)
class Fix:
    """Commands that fix a finding. They are harmless and can be repeated."""

    commands: tuple[tuple[str, ...], ...]
    root: bool = True
    restart: bool = False  # whether the Mac must restart before the fix is effective

    def __str__(self) -> str:
        prefix = "sudo " if self.root else ""
        return " && ".join(prefix + shlex.join(command) for command in self.commands)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Result of a check: severity, message, evidence, and how to fix it."""

    severity: Severity
    message: str
    evidence: str = ""
    remedy: str = ""
    fix: Fix | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    `evaluate` returns None if the check does not apply to the host. If one of the `required` readings is missing, the
    result is unknown. `condition` is the type of the host condition for a failing check.
    """

    name: str
    title: str
    condition: str
    required: tuple[str, ...]
    evaluate: Callable[[Readings, Subject], CheckResult | None]
    optional: tuple[str, ...] = ()  # readings that may be missing


@dataclass(frozen=True, slots=True)
class Finding:
    """A check and its result."""

    check: Check
    result: CheckResult

    @property
    def is_failing(self) -> bool:
        """Whether the result is a warning or an error."""
        return self.result.severity in (Severity.WARNING, Severity.ERROR)

    @property
    def is_ok(self) -> bool:
        """Whether the check passed. An unknown result is neither failing nor ok."""
        return self.result.severity is Severity.OK


def passed(message: str, evidence: str = "") -> CheckResult:
    """Return the result of a passed check."""
    return CheckResult(Severity.OK, message, evidence)


def unknown(message: str, remedy: str = "") -> CheckResult:
    """Return the result of a check that could not be evaluated."""
    return CheckResult(Severity.UNKNOWN, message, remedy=remedy)


def decide(check: Check, readings: Readings, subject: Subject) -> Finding | None:
    """Evaluate a check. Return None if it does not apply to this host."""
    for name in check.required:
        if readings[name].error:
            return Finding(check, unknown(f"not checked: {readings[name].error}"))
    result = check.evaluate(readings, subject)
    return Finding(check, result) if result is not None else None


def condition_of(finding: Finding, now_s: float) -> Condition:
    """Return the host condition for a finding. An error is a problem that needs attention; a warning is not."""
    result = finding.result
    if not finding.is_failing:
        return Condition(finding.check.condition, ConditionStatus.FALSE, "AsExpected", "", now_s)
    message = f"{result.message}; {result.remedy}" if result.remedy else result.message
    problem = result.severity is Severity.ERROR
    reason = "DoctorFoundError" if problem else "DoctorFoundWarning"
    return Condition(finding.check.condition, ConditionStatus.TRUE, reason, message, now_s, problem=problem)


OK, UNKNOWN, WARNING, ERROR = Severity.OK, Severity.UNKNOWN, Severity.WARNING, Severity.ERROR
GIB: Final = 1 << 30
