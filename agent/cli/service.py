"""`hearth service`: the agent as a service of launchd, the service manager of macOS."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from agent.cli import options
from agent.cli.exit_codes import ExitCode
from agent.cli.output import print_json, print_line, quiet_logs
from agent.host.service import plist
from agent.host.service.errors import ServiceRefusedError, ServiceUnsupportedError
from agent.host.service.launchctl import Launchctl
from agent.host.service.launchd_service import Service
from agent.host.service.target import ROOT, ServiceKind, Target, daemon_target, user_target
from agent.host.user_accounts import invoking_user
from agent.processes.command import CommandRunner

if TYPE_CHECKING:
    from collections.abc import Coroutine

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Run Hearth under launchd on a Mac.")

_KIND_BY_HYPERVISOR: Final = {"tart": ServiceKind.USER}

_As = Annotated[
    ServiceKind | None,
    typer.Option(
        "--as", show_default=False,
        help="daemon: as root, from boot on. user: as the logged-in user, from login on. Default: the installed one, "
        "or user for Tart and daemon for other hypervisors.",
    ),
]  # fmt: skip
_Program = Annotated[
    Path | None, typer.Option(help="The hearth program. Default: this one.", show_default=False, metavar="PATH")
]
_Env = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        metavar="NAME=VALUE",
        help="Environment variable of the agent, such as TART_HOME. Repeatable; not for secrets.",
    ),
]


def _require_launchd() -> None:
    if sys.platform != "darwin":
        raise ServiceUnsupportedError(
            "`hearth service` runs the agent under launchd, which keeps it running on a Mac from boot or login on; "
            f"this system ({sys.platform}) has no launchd",
            remedy="run `hearth run` under this system's own service manager; docs/launchd.md has a unit for systemd",
        )


@app.command()
def install(
    as_kind: _As = None,
    config: options.Config = None,
    program: _Program = None,
    env: _Env = None,
    as_json: options.Json = False,
) -> None:
    """Install the launchd job and start it, or update an installed job. The new agent adopts running VMs.

    \b
    sudo hearth service install --as daemon            # for Anka
    hearth service install --as user                   # for Tart, as the auto-login user
    hearth service install --env TART_HOME=/Volumes/VMs/tart
    """
    from agent.config import load_config  # noqa: PLC0415 - pydantic is slow to import

    _require_launchd()
    path = options.config_path(config).absolute()
    loaded = load_config(path)
    target = _target(as_kind, _KIND_BY_HYPERVISOR.get(loaded.hypervisor.driver, ServiceKind.DAEMON))
    _refuse_second_agent(target)
    found = _program_path(program)
    document = plist.render(target, program=found, config=path, environment=_environment(env or ()))
    service = _service(target)
    changed, notes = _run(service.install(document, plist.newsyslog(target)))
    if as_json:
        print_json({"changed": changed, "notes": notes, **_run(_status(service))})
        return
    print_line(f"{target.service} runs {found}" if changed else f"{target.service} is already installed and runs")
    if not changed:
        print_line("run `hearth service restart` after an upgrade of the program")
    for note in notes:
        print_line(f"note: {note}")


@app.command()
def uninstall(as_kind: _As = None, as_json: options.Json = False) -> None:
    """Stop the agent and remove its job. Keep its files and its VMs, which continue to run.

    \b
    hearth drain --wait && hearth service uninstall      # ends the VMs first
    """
    target = _target(as_kind, ServiceKind.DAEMON)
    removed = _run(_service(target).uninstall())
    _print_change(as_json, target, removed, f"{target.service} is uninstalled", f"{target.service} was not installed")


@app.command()
def start(as_kind: _As = None, as_json: options.Json = False) -> None:
    """Start the installed agent.

    \b
    hearth service start
    """
    target = _target(as_kind, ServiceKind.DAEMON)
    started = _run(_service(target).start())
    _print_change(as_json, target, started, f"{target.service} runs", f"{target.service} already ran")


@app.command()
def stop(as_kind: _As = None, as_json: options.Json = False) -> None:
    """Stop the agent until the next start, boot or login. VMs continue to run.

    \b
    hearth drain --wait && hearth service stop           # ends the VMs first
    """
    target = _target(as_kind, ServiceKind.DAEMON)
    stopped = _run(_service(target).stop())
    _print_change(
        as_json, target, stopped, f"{target.service} is stopped; VMs continue to run", f"{target.service} did not run"
    )


@app.command()
def restart(as_kind: _As = None, as_json: options.Json = False) -> None:
    """Stop the agent and start it again, for example after an upgrade. The new agent adopts running VMs.

    \b
    hearth service restart
    """
    target = _target(as_kind, ServiceKind.DAEMON)
    _run(_service(target).restart())
    _print_change(as_json, target, True, f"{target.service} is restarted", "")


@app.command()
def status(as_kind: _As = None, as_json: options.Json = False) -> int:
    """Show the state of the job. Exit with 0 when it runs, 3 when it does not, 4 when it is not installed.

    \b
    hearth service status
    """
    document = _run(_status(_service(_target(as_kind, ServiceKind.DAEMON))))
    if as_json:
        print_json(document)
    else:
        for key, value in document.items():
            print_line(f"{key.replace('_', ' '):<12} {'' if value is None else value}".rstrip())
    if not document["installed"]:
        return ExitCode.NOT_FOUND
    return ExitCode.OK if document["pid"] is not None else ExitCode.UNREACHABLE


async def _status(service: Service) -> dict[str, Any]:
    target, job = service.target, await service.find_job()
    return {
        "service": target.service,
        "as": str(target.kind),
        "installed": target.plist.exists(),
        "loaded": job is not None,
        "state": job.state if job else "not loaded",
        "pid": job.pid if job else None,
        "runs": job.runs if job else 0,
        "last_exit": job.last_exit if job else "",
        "plist": str(target.plist),
        "logs": str(target.logs),
        "program": job.program if job else "",
    }


def _print_change(as_json: bool, target: Target, changed: bool, text: str, unchanged_text: str) -> None:
    if as_json:
        print_json({"service": target.service, "changed": changed})
    else:
        print_line(text if changed else unchanged_text)


def _target(requested: ServiceKind | None, default: ServiceKind) -> Target:
    """Return the requested job, or the installed one, or the default."""
    _require_launchd()
    targets = _targets()
    installed = [kind for kind, target in targets.items() if target.plist.exists()]
    kind = requested or (installed or [default])[0]
    if kind not in targets:
        raise ServiceRefusedError(
            "root has no login session in which a user agent could run",
            remedy="run this command as the auto-login user, with or without sudo, or use --as daemon",
        )
    return targets[kind]


def _targets() -> dict[ServiceKind, Target]:
    targets = {ServiceKind.DAEMON: daemon_target(ROOT)}
    account = invoking_user()
    if account.uid:
        targets[ServiceKind.USER] = user_target(account, ROOT)
    return targets


def _refuse_second_agent(target: Target) -> None:
    for other in _targets().values():
        if other.kind is not target.kind and other.plist.exists():
            raise ServiceRefusedError(
                f"Hearth is already installed as {other.kind} in {other.plist}, and a host can have one agent only",
                remedy=f"run `hearth service uninstall --as {other.kind}` first; VMs continue to run",
            )


def _program_path(given: Path | None) -> Path:
    """Return the program for launchd, by the path of this call: /opt/hearth/current stays valid after an upgrade."""
    called = Path(sys.argv[0]).absolute()
    found = given.absolute() if given else called if called.name == "hearth" else Path(sys.executable).parent / "hearth"
    if not os.access(found, os.X_OK) or found.is_dir():
        raise ServiceRefusedError(f"{found} is not an executable program", remedy="name the program with --program")
    return found


def _environment(pairs: list[str] | tuple[()]) -> dict[str, str]:
    split = [pair.partition("=") for pair in pairs]
    return {name: value for name, _, value in split}


def _service(target: Target) -> Service:
    runner = CommandRunner()
    return Service(target, Launchctl(runner), runner)


def _run(work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 - what each step returns
    with quiet_logs():
        return asyncio.run(work)
