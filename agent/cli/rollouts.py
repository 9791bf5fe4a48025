"""`hearth rollout`."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer

from agent.cli import complete, options
from agent.cli.output import print_json, say
from agent.telemetry.log_rendering import escape_unprintable

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Show rollouts, try one again, or undo one.")

_Pool = Annotated[str, typer.Argument(help="The pool's name.", show_default=False, autocompletion=complete.pools)]


@app.command()
def status(config: options.Config = None, socket: options.Socket = None, as_json: options.Json = False) -> None:
    """Show how far each pool's newest version is.

    \b
    hearth rollout status
    hearth rollout status --json | jq '.rollouts[] | select(.phase == "rolled-back")'
    """
    with options.client(socket, config) as client:
        answer = client.get("/v1/rollouts")
    if as_json:
        print_json(answer.document)
        return
    from rich.console import Console  # noqa: PLC0415 - rich is slow to import

    from agent.cli.tables import rollout_table  # noqa: PLC0415

    console = Console()
    console.print(rollout_table(answer.document["rollouts"], answer.at, console.width))


@app.command()
def retry(
    pool: _Pool, config: options.Config = None, socket: options.Socket = None, as_json: options.Json = False
) -> None:
    """Try a pool's target again at once: its quarantine, its failures and its breaker are forgotten.

    \b
    hearth rollout retry xcode
    """
    with options.client(socket, config) as client:
        answer = client.ask("POST", f"/v1/rollouts/{quote(pool, safe='')}/retry")
    _show(answer.document, as_json=as_json)


@app.command()
def undo(
    pool: _Pool,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    config: options.Config = None,
    socket: options.Socket = None,
    as_json: options.Json = False,
) -> None:
    """Go back to the version before. The target is left alone until it changes or is retried.

    \b
    hearth rollout undo xcode --reason "builds fail since this morning"
    """
    with options.client(socket, config) as client:
        answer = client.ask("POST", f"/v1/rollouts/{quote(pool, safe='')}/undo?{urlencode({'reason': reason})}")
    _show(answer.document, as_json=as_json)


def _show(rollout: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(rollout)
        return
    why = f": {escape_unprintable(rollout['reason'])}" if rollout["reason"] else ""
    say(f"pool {rollout['pool']} is {rollout['phase']}{why}")
    say(f"target   {rollout['target'] or '-'}")
    say(f"serving  {rollout['serving'] or '-'}")
