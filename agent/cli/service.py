"""`hearth service`: Hearth under launchd, the service manager of macOS."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from agent.cli import options
from agent.cli.exits import Exit
from agent.cli.output import print_json, say
from agent.cli.quiet import quiet_logs
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
        help="daemon: root, from boot on. user: the user at the screen, from login on. Default: what is installed, "
        "else user for Tart and daemon for the rest.",
    ),
]  # fmt: skip
_Program = Annotated[
    Path | None, typer.Option(help="The hearth program; default: this one.", show_default=False, metavar="PATH")
]
_Env = Annotated[
    list[str] | None,
    typer.Option("--env", metavar="NAME=VALUE", help="A variable for the agent, as TART_HOME. No secrets."),
]


def _require_launchd() -> None:
    if sys.platform != "darwin":
        raise ServiceUnsupportedError(
            "`hearth service` puts the agent under launchd, which keeps it running on a Mac from boot or login on; "
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
    """Write the job and start it; again to change it. VMs that run stay, and the new agent adopts them.

    \b
    sudo hearth service install --as daemon            # Anka
    hearth service install --as user                   # Tart, as the auto-login user
    hearth service install --env TART_HOME=/Volumes/VMs/tart
    """
    from agent.config import load_config  # noqa: PLC0415 - pydantic is slow to import

    _require_launchd()
    path = options.config_path(config).absolute()
    loaded = load_config(path)
    target = _target(as_kind, _KIND_BY_HYPERVISOR.get(loaded.hypervisor.driver, ServiceKind.DAEMON))
    _refuse_two(target)
    found = _program_path(program)
    document = plist.render(target, program=found, config=path, environment=_environment(env or ()))
    service = _service(target)
    changed, notes = _run(service.install(document, plist.newsyslog(target)))
    if as_json:
        print_json({"changed": changed, "notes": notes, **_run(_status(service))})
        return
    say(f"{target.service} runs {found}" if changed else f"{target.service} is installed already, and runs")
    if not changed:
        say("`hearth service restart` starts it anew, after an upgrade of the program")
    for note in notes:
        say(f"note: {note}")


@app.command()
def uninstall(as_kind: _As = None, as_json: options.Json = False) -> None:
    """Stop the agent and remove its job. VMs run on, and so does what the agent wrote: drain first to end them."""
    target = _target(as_kind, ServiceKind.DAEMON)
    removed = _run(_service(target).uninstall())
    _tell(as_json, target, removed, f"{target.service} is gone", f"{target.service} was not installed")


@app.command()
def start(as_kind: _As = None, as_json: options.Json = False) -> None:
    """Start the installed agent."""
    target = _target(as_kind, ServiceKind.DAEMON)
    started = _run(_service(target).start())
    _tell(as_json, target, started, f"{target.service} runs", f"{target.service} ran already")


@app.command()
def stop(as_kind: _As = None, as_json: options.Json = False) -> None:
    """Stop the agent until the next start, boot or login. VMs run on: `hearth drain --wait` first to end them."""
    target = _target(as_kind, ServiceKind.DAEMON)
    stopped = _run(_service(target).stop())
    _tell(as_json, target, stopped, f"{target.service} is stopped; VMs run on", f"{target.service} did not run")


@app.command()
def restart(as_kind: _As = None, as_json: options.Json = False) -> None:
    """Stop the agent and start it anew, as after an upgrade. VMs run on, and the new agent adopts them."""
    target = _target(as_kind, ServiceKind.DAEMON)
    _run(_service(target).restart())
    _tell(as_json, target, True, f"{target.service} runs anew", "")


@app.command()
def status(as_kind: _As = None, as_json: options.Json = False) -> int:
    """Show what launchd has of Hearth. Exit code 0: it runs, 3: it does not, 4: it is not installed."""
    document = _run(_status(_service(_target(as_kind, ServiceKind.DAEMON))))
    if as_json:
        print_json(document)
    else:
        for key, value in document.items():
            say(f"{key.replace('_', ' '):<12} {'' if value is None else value}".rstrip())
    if not document["installed"]:
        return Exit.NOT_FOUND
    return Exit.OK if document["pid"] is not None else Exit.UNREACHABLE


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


def _tell(as_json: bool, target: Target, changed: bool, done: str, nothing: str) -> None:
    if as_json:
        print_json({"service": target.service, "changed": changed})
    else:
        say(done if changed else nothing)


def _target(asked: ServiceKind | None, otherwise: ServiceKind) -> Target:
    """Return the place that was asked for, else the one where Hearth is installed, else the given kind's."""
    _require_launchd()
    places = _places()
    kinds = [asked] if asked else [kind for kind, place in places.items() if place.plist.exists()] or [otherwise]
    kind = kinds[0]
    if kind not in places:
        raise ServiceRefusedError(
            "root has no session at the screen, so it can have no agent there",
            remedy="run it as the auto-login user, with or without sudo, or use --as daemon",
        )
    return places[kind]


def _places() -> dict[ServiceKind, Target]:
    places = {ServiceKind.DAEMON: daemon_target(ROOT)}
    account = invoking_user()
    if account.uid:
        places[ServiceKind.USER] = user_target(account, ROOT)
    return places


def _refuse_two(target: Target) -> None:
    for place in _places().values():
        if place.kind is not target.kind and place.plist.exists():
            raise ServiceRefusedError(
                f"Hearth is installed as {place.kind} already, by {place.plist}: two agents would fight for one host",
                remedy=f"run `hearth service uninstall --as {place.kind}` first; VMs stay",
            )


def _program_path(given: Path | None) -> Path:
    """Return the program launchd shall run, by the path it was called by: /opt/hearth/current outlives a version."""
    called = Path(sys.argv[0]).absolute()
    found = given.absolute() if given else called if called.name == "hearth" else Path(sys.executable).parent / "hearth"
    if not os.access(found, os.X_OK) or found.is_dir():
        raise ServiceRefusedError(f"{found} is no program that can be run", remedy="name the program by --program")
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
