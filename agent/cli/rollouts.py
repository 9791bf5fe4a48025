"""`hearth rollout`."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote, urlencode

import typer

from agent.cli import options
from agent.cli.documents import PoolRollout, RolloutList
from agent.cli.output import print_json, print_line
from agent.telemetry.log_rendering import escape_unprintable

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Show, retry or undo rollouts.")

_Pool = Annotated[
    str, typer.Argument(help="The pool's name.", show_default=False, autocompletion=options.complete_pools)
]


@app.command()
def status(config: options.Config = None, socket: options.Socket = None, as_json: options.Json = False) -> None:
    """Show the progress of each pool's newest version.

    \b
    hearth rollout status
    hearth rollout status --json | jq '.rollouts[] | select(.phase == "rolled-back")'
    """
    with options.build_client(socket, config) as client:
        answer = client.get("/v1/rollouts", RolloutList)
    if as_json:
        print_json(answer.document)
        return
    from agent.cli.console import PlainConsole  # noqa: PLC0415 - rich is slow to import
    from agent.cli.tables import rollout_table  # noqa: PLC0415

    console = PlainConsole()
    console.print(rollout_table(answer.document["rollouts"], answer.at, console.width))


@app.command()
def retry(
    pool: _Pool, config: options.Config = None, socket: options.Socket = None, as_json: options.Json = False
) -> None:
    """Try a pool's target version again immediately. Clear its quarantine, its failures and its breaker.

    \b
    hearth rollout retry xcode
    """
    with options.build_client(socket, config) as client:
        answer = client.request("POST", f"/v1/rollouts/{quote(pool, safe='')}/retry", PoolRollout)
    _show(answer.document, as_json=as_json)


@app.command()
def undo(
    pool: _Pool,
    reason: Annotated[str, typer.Option(help="The reason, for the log.")] = "",
    config: options.Config = None,
    socket: options.Socket = None,
    as_json: options.Json = False,
) -> None:
    """Return to the previous version. The target is not tried again until it changes or is retried.

    \b
    hearth rollout undo xcode --reason "builds fail since this morning"
    """
    with options.build_client(socket, config) as client:
        path = f"/v1/rollouts/{quote(pool, safe='')}/undo?{urlencode({'reason': reason})}"
        answer = client.request("POST", path, PoolRollout)
    _show(answer.document, as_json=as_json)


def _show(rollout: PoolRollout, *, as_json: bool) -> None:
    if as_json:
        print_json(rollout)
        return
    reason = f": {escape_unprintable(rollout['reason'])}" if rollout["reason"] else ""
    print_line(f"pool {rollout['pool']} is {rollout['phase']}{reason}")
    print_line(f"target   {rollout['target'] or '-'}")
    print_line(f"serving  {rollout['serving'] or '-'}")
