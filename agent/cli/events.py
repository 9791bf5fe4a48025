"""`hearth events`."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlencode

import typer

from agent.cli import options
from agent.cli.output import complain, print_json, say
from agent.cli.place import AgentUnreachableError
from agent.telemetry.log_rendering import render_line

if TYPE_CHECKING:
    from agent.cli.client import ApiClient

app = typer.Typer(add_completion=False)

_PAGE: Final = 1000
_RETRY_S: Final = 1.0
_BAD_KINDS: Final = ("-failed", "-refused", "-broken", "-while-leased")


@app.command()
def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on showing new ones, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the latest.")] = 50,
    vm: Annotated[str, typer.Option(help="Only those of this VM: the story of its life.")] = "",
    config: options.Config = None,
    socket: options.Socket = None,
    as_json: options.Json = False,
) -> None:
    """Show what happened on this host: every transition of VMs, leases, images and rollouts, oldest first.

    \b
    hearth events -f
    hearth events --vm hearth-small-01jx…
    hearth events -n 1000 --json | jq 'select(.kind == "vm-failed")'
    """
    with options.client(socket, config) as client:
        latest, last = _latest(client, vm, lines)
        for event in latest:
            _show(event, as_json=as_json)
        if follow:
            with suppress(KeyboardInterrupt):
                _follow_for_ever(client, vm, last, as_json=as_json)


def _latest(client: ApiClient, vm: str, count: int) -> tuple[list[dict[str, Any]], int]:
    """Return the latest events, and the number of the very last one."""
    last: int = client.get("/v1/events?limit=1").document["last"]
    found: list[dict[str, Any]] = []
    after = 0 if vm else max(0, last - count)
    while count and after < last:
        query = urlencode({"after": after, "limit": _PAGE} | ({"vm": vm} if vm else {}))
        page = client.get(f"/v1/events?{query}").document
        if not page["events"]:
            break
        found, after = [*found, *page["events"]][-count:], page["next"]
    return found, max(last, after)


def _follow_for_ever(client: ApiClient, vm: str, last: int, *, as_json: bool) -> None:
    """Show events as they come. An agent that goes away is told of once and waited for: it may be restarting."""
    path, away = f"/v1/events?{urlencode({'vm': vm} if vm else {})}", False
    while True:
        try:
            for event in client.stream(path, after=last):
                _show(event, as_json=as_json)
                sys.stdout.flush()
                last, away = event["number"], False
        except AgentUnreachableError as error:
            if not away:
                complain(error)
            away = True
        time.sleep(_RETRY_S)


def _show(event: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(event)
        return
    level = "warning" if event["kind"].endswith(_BAD_KINDS) else "info"
    about = {key: value for key, value in event.items() if key not in ("number", "kind", "at") and value}
    line = {"ts": f"{event['at'][:19]}Z", "level": level, "event": event["kind"], **about}
    say(render_line(line, colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR")))
