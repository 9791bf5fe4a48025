"""`hearth doctor`: problems of this host and their fixes."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from agent.cli import options
from agent.cli.exit_codes import ExitCode
from agent.cli.output import print_error, print_json, print_line, quiet_logs
from agent.host.doctor.doctor import build_doctor, build_subject
from agent.host.doctor.model import Severity
from agent.host.user_accounts import invoking_user
from agent.processes.command import CommandError, CommandRunner

if TYPE_CHECKING:
    from pathlib import Path

    from agent.config import Config
    from agent.host.doctor.doctor import Doctor
    from agent.host.doctor.model import Finding

app = typer.Typer(add_completion=False, help="Find problems of this host and fix them.")

_MARKS: Final = {Severity.OK: "ok", Severity.UNKNOWN: "?", Severity.WARNING: "warning", Severity.ERROR: "ERROR"}


@app.command()
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Run the safe fixes; confirm each one first.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Run the fixes of --fix without confirmation.")] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="CHECK", help="Run only this check. Repeatable.")
    ] = None,
    config: options.Config = None,
    as_json: options.Json = False,
) -> int:
    """Check sleep settings, session, network, disk and versions of this host. Exit with 1 when there is an error.

    \b
    hearth doctor
    sudo hearth doctor --fix             # shows each command and waits for your confirmation
    sudo hearth doctor --fix --yes --only sleep
    """
    host_doctor = _build_doctor(_load_config(config))
    names = frozenset(only or ())
    findings = _run_checks(host_doctor, names)
    _refuse_unknown(names, findings)
    fixes: list[dict[str, Any]] = []
    if not as_json:
        _print(findings)
    if fix:
        fixes = _apply_fixes(host_doctor, findings, yes=yes, quiet=as_json)
        if any(entry["done"] for entry in fixes):
            findings = _run_checks(host_doctor, names)
            if not as_json:
                print_line("")
                _print(findings)
    if as_json:
        documents = [_document(finding) for finding in findings]
        print_json({"ok": _is_ok(findings), "findings": documents, "fixes": fixes})
    return ExitCode.OK if _is_ok(findings) else ExitCode.FAILURE


def _load_config(path: Path | None) -> Config:
    from agent.config import Config, load_config  # noqa: PLC0415 - pydantic is slow to import

    found = options.config_path(path)
    if path is None and not found.exists():
        return Config()  # a new Mac has no configuration when it is checked for the first time
    return load_config(found)


def _build_doctor(config: Config) -> Doctor:
    account = invoking_user()
    return build_doctor(
        lambda: build_subject(config, account, config.hypervisor.driver, in_agent=False), CommandRunner()
    )


def _run_checks(host_doctor: Doctor, names: frozenset[str]) -> list[Finding]:
    with quiet_logs():
        return asyncio.run(host_doctor.run_checks(names))


def _refuse_unknown(names: frozenset[str], findings: list[Finding]) -> None:
    unknown = sorted(names - {finding.check.name for finding in findings})
    if unknown:
        raise typer.BadParameter(f"this host has no such check: {', '.join(unknown)}", param_hint="--only")


def _is_ok(findings: list[Finding]) -> bool:
    return all(finding.result.severity is not Severity.ERROR for finding in findings)


def _print(findings: list[Finding]) -> None:
    width = max((len(finding.check.title) for finding in findings), default=0)
    for finding in findings:
        _print_finding(finding, width)
    errors, warnings = (
        sum(finding.result.severity is severity for finding in findings)
        for severity in (Severity.ERROR, Severity.WARNING)
    )
    print_line(f"{len(findings)} checks, {errors} errors, {warnings} warnings")


def _print_finding(finding: Finding, width: int) -> None:
    result = finding.result
    is_ok = result.severity is Severity.OK
    evidence = f" ({result.evidence})" if is_ok and result.evidence else ""
    print_line(f"{_MARKS[result.severity]:<8}{finding.check.title:<{width}}  {result.message}{evidence}")
    if is_ok:
        return
    indent = " " * (width + 10)
    if result.evidence:
        print_line(f"{indent}seen: {' '.join(result.evidence.split())}")
    if result.remedy:
        print_line(f"{indent}fix:  {result.remedy}")
    if result.fix:
        print_line(f"{indent}run:  {result.fix}")


def _apply_fixes(host_doctor: Doctor, findings: list[Finding], *, yes: bool, quiet: bool) -> list[dict[str, Any]]:
    """Run the fixes that the user confirms; return the result of each."""
    results: list[dict[str, Any]] = []
    for finding in findings:
        fix = finding.result.fix
        if fix is None or not finding.is_failing:
            continue
        result: dict[str, Any] = {"check": finding.check.name, "command": str(fix), "done": False}
        results.append(result)
        if not yes and not _confirm(finding, str(fix)):
            result["error"] = "not confirmed"
            continue
        try:
            with quiet_logs():
                asyncio.run(host_doctor.apply_fix(fix))
        except CommandError as error:
            result["error"] = error.message
            print_error(CommandError(error.message, remedy=f"run this command yourself: {fix}"))
            continue
        result["done"] = True
        if not quiet:
            print_line(f"done: {fix}" + ("; restart the Mac to apply it" if fix.restart else ""))
    return results


def _confirm(finding: Finding, command: str) -> bool:
    if not sys.stdin.isatty():
        raise typer.BadParameter(
            "--fix needs a confirmation for each command, and there is no terminal: add --yes", param_hint="--fix"
        )
    return typer.confirm(f"{finding.check.title}: {finding.result.message}.\nRun {command}?", err=True)


def _document(finding: Finding) -> dict[str, Any]:
    result = finding.result
    return {
        "check": finding.check.name,
        "title": finding.check.title,
        "severity": str(result.severity),
        "message": result.message,
        "evidence": result.evidence,
        "remedy": result.remedy,
        "fix": str(result.fix) if result.fix else None,
        "restart": bool(result.fix and result.fix.restart),
    }
