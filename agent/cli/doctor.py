"""`hearth doctor`: what is wrong with this host, and the way to mend it."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from agent.cli import options
from agent.cli.exits import Exit
from agent.cli.output import complain, print_json, say
from agent.cli.quiet import quiet_logs
from agent.host.doctor.doctor import build_doctor, build_subject
from agent.host.doctor.model import Severity
from agent.host.user_accounts import invoking_user
from agent.processes.command import CommandError, CommandRunner

if TYPE_CHECKING:
    from pathlib import Path

    from agent.config import Config
    from agent.host.doctor.doctor import Doctor
    from agent.host.doctor.model import Finding

app = typer.Typer(add_completion=False, help="Find what breaks this host, and mend it.")

_MARKS: Final = {Severity.OK: "ok", Severity.UNKNOWN: "?", Severity.WARNING: "warning", Severity.ERROR: "ERROR"}


@app.command()
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Mend what is safe to mend; asks before each.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --fix: do not ask.")] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="CHECK", help="This check; may be given again.")
    ] = None,
    config: options.Config = None,
    as_json: options.Json = False,
) -> int:
    """Look at what breaks hosts: sleep, session, network, disk, versions. Exit code 1: an error was found.

    \b
    hearth doctor
    sudo hearth doctor --fix             # shows each command, and asks
    sudo hearth doctor --fix --yes --only sleep
    """
    looking = _doctor(_config(config))
    names = frozenset(only or ())
    with quiet_logs():
        findings = asyncio.run(looking.run_checks(names))
    _refuse_unknown(names, findings)
    done: list[dict[str, Any]] = []
    if not as_json:
        _print(findings)
    if fix:
        done = _mend(looking, findings, yes=yes, quiet=as_json)
        if any(one["done"] for one in done):
            with quiet_logs():
                findings = asyncio.run(looking.run_checks(names))
            if not as_json:
                say("")
                _print(findings)
    if as_json:
        print_json({"ok": _ok(findings), "findings": [_document(one) for one in findings], "fixes": done})
    return Exit.OK if _ok(findings) else Exit.FAILURE


def _config(path: Path | None) -> Config:
    from agent.config import Config, load_config  # noqa: PLC0415 - pydantic is slow to import

    found = options.config_path(path)
    if path is None and not found.exists():
        return Config()  # a Mac is looked at before it is configured
    return load_config(found)


def _doctor(config: Config) -> Doctor:
    account = invoking_user()
    return build_doctor(
        lambda: build_subject(config, account, config.hypervisor.driver, in_agent=False), CommandRunner()
    )


def _refuse_unknown(names: frozenset[str], findings: list[Finding]) -> None:
    unknown = sorted(names - {finding.check.name for finding in findings})
    if unknown:
        raise typer.BadParameter(f"no such check here: {', '.join(unknown)}", param_hint="--only")


def _ok(findings: list[Finding]) -> bool:
    return all(finding.result.severity is not Severity.ERROR for finding in findings)


def _print(findings: list[Finding]) -> None:
    width = max((len(finding.check.title) for finding in findings), default=0)
    for finding in findings:
        result = finding.result
        seen = f" ({result.evidence})" if result.severity is Severity.OK and result.evidence else ""
        say(f"{_MARKS[result.severity]:<8}{finding.check.title:<{width}}  {result.message}{seen}")
        if result.severity is Severity.OK:
            continue
        indent = " " * (width + 10)
        if result.evidence:
            say(f"{indent}seen: {' '.join(result.evidence.split())}")
        if result.remedy:
            say(f"{indent}mend: {result.remedy}")
        if result.fix:
            say(f"{indent}run:  {result.fix}")
    counts = [
        sum(one.result.severity is severity for one in findings) for severity in (Severity.ERROR, Severity.WARNING)
    ]
    say(f"{len(findings)} checks, {counts[0]} errors, {counts[1]} warnings")


def _mend(looking: Doctor, findings: list[Finding], *, yes: bool, quiet: bool) -> list[dict[str, Any]]:
    """Run the fixes that are agreed to; return what became of each."""
    done: list[dict[str, Any]] = []
    for finding in findings:
        fix = finding.result.fix
        if fix is None or not finding.is_failing:
            continue
        result: dict[str, Any] = {"check": finding.check.name, "command": str(fix), "done": False}
        done.append(result)
        if not yes and not _agreed(finding, str(fix)):
            result["error"] = "not agreed to"
            continue
        try:
            with quiet_logs():
                asyncio.run(looking.apply_fix(fix))
        except CommandError as error:
            result["error"] = error.message
            complain(CommandError(error.message, remedy=f"run it by hand: {fix}"))
            continue
        result["done"] = True
        if not quiet:
            say(f"done: {fix}" + ("; restart the Mac before it counts" if fix.restart else ""))
    return done


def _agreed(finding: Finding, command: str) -> bool:
    if not sys.stdin.isatty():
        raise typer.BadParameter(
            "--fix asks before each command, and there is no terminal: add --yes", param_hint="--fix"
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
