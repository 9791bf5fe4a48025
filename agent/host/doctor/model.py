"""The values of the doctor: what was read, what a check finds, and what would mend it. Pure."""

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
    """How bad a finding is."""

    OK = "ok"
    UNKNOWN = "unknown"  # it could not be read: no reason to worry, and none not to
    WARNING = "warning"  # costs time or capacity, or will one day
    ERROR = "error"  # this host does not serve, or will stop to


@dataclass(frozen=True, slots=True)
class Subject:
    """What the host is looked at for: whose VMs, by which hypervisor, where."""

    hypervisor: str  # as configured: tart, anka, qemu, simulated, auto
    data_dir: Path
    vm_dirs: tuple[Path, ...]  # where clones and images stand
    disk_reserve_bytes: int
    user: str  # who the agent runs as, or shall
    uid: int
    home: Path
    tool: str  # the hypervisor's own program, where it has one
    version: str  # of this Hearth
    root: bool  # whether the looking itself is done by root
    in_agent: bool  # in the agent, and not at a command line
    now_s: float

    @property
    def for_tart(self) -> bool:
        """Whether VMs need the session of a user who is logged in at the screen."""
        return self.hypervisor == "tart"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a tool said. `trouble` tells why it could not be asked; then the rest is empty."""

    out: str = ""
    err: str = ""
    exit_code: int = 0
    error: str = ""

    @property
    def text(self) -> str:
        """Both streams: several tools of macOS answer on stderr."""
        return "\n".join(part for part in (self.out.strip(), self.err.strip()) if part)

    def plist(self) -> Mapping[str, Any]:
        """Return the property list that was printed; empty when there is none."""
        try:
            read = plistlib.loads(self.out.encode())
        except (plistlib.InvalidFileException, ExpatError, ValueError):
            return {}
        return read if isinstance(read, dict) else {}


Readings = dict[str, Reading]


@dataclass(frozen=True, slots=True)
class Fix:
    """Commands that mend a finding without harm, whoever runs them and however often."""

    commands: tuple[tuple[str, ...], ...]
    root: bool = True
    restart: bool = False  # of the Mac, before it counts

    def __str__(self) -> str:
        prefix = "sudo " if self.root else ""
        return " && ".join(prefix + shlex.join(command) for command in self.commands)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a judge says: how bad, what, by which evidence, and the way out."""

    severity: Severity
    message: str
    evidence: str = ""
    remedy: str = ""
    fix: Fix | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One check. `required` are the readings without which nothing can be said; a judge returns None where the check
    is of no concern. `condition` is the type of the host condition that a failing check becomes in the agent."""

    name: str
    title: str
    condition: str
    required: tuple[str, ...]
    evaluate: Callable[[Readings, Subject], CheckResult | None]
    optional: tuple[str, ...] = ()  # readings it can do without


@dataclass(frozen=True, slots=True)
class Finding:
    """A check with its result."""

    check: Check
    result: CheckResult

    @property
    def is_failing(self) -> bool:
        """Whether there is something to mend."""
        return self.result.severity in (Severity.WARNING, Severity.ERROR)

    @property
    def is_ok(self) -> bool:
        """Whether it is known that nothing is to be mended."""
        return self.result.severity is Severity.OK


def passed(message: str, evidence: str = "") -> CheckResult:
    """Return that all is well."""
    return CheckResult(Severity.OK, message, evidence)


def unknown(message: str, remedy: str = "") -> CheckResult:
    """Return that it cannot be told."""
    return CheckResult(Severity.UNKNOWN, message, remedy=remedy)


def decide(check: Check, readings: Readings, subject: Subject) -> Finding | None:
    """Return what a check finds; None when it is of no concern here."""
    for name in check.required:
        if readings[name].error:
            return Finding(check, unknown(f"it cannot be told: {readings[name].error}"))
    result = check.evaluate(readings, subject)
    return Finding(check, result) if result is not None else None


def condition_of(finding: Finding, now_s: float) -> Condition:
    """Return the host condition of a finding. Only errors ask for attention at once; warnings are there to be seen."""
    result = finding.result
    if not finding.is_failing:
        return Condition(finding.check.condition, ConditionStatus.FALSE, "AsExpected", "", now_s)
    message = f"{result.message}; {result.remedy}" if result.remedy else result.message
    problem = result.severity is Severity.ERROR
    reason = "DoctorFoundError" if problem else "DoctorFoundWarning"
    return Condition(finding.check.condition, ConditionStatus.TRUE, reason, message, now_s, problem=problem)


OK, UNKNOWN, WARNING, ERROR = Severity.OK, Severity.UNKNOWN, Severity.WARNING, Severity.ERROR
GIB: Final = 1 << 30
