"""`hearth events`."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlencode

import typer

from agent.cli import options
from agent.cli.documents import EventPage
from agent.cli.endpoint import AgentUnreachableError
from agent.cli.output import is_colour_wanted, print_error, print_json, print_rendered
from agent.telemetry.log_rendering import render_line

if TYPE_CHECKING:
    from agent.cli.client import ApiClient
    from agent.cli.documents import EventDocument, StreamedEvent

app = typer.Typer(add_completion=False)

_PAGE: Final = 1000
_RETRY_S: Final = 1.0
_BAD_KINDS: Final = ("-failed", "-refused", "-broken", "-while-leased")


@app.command()
def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show new events too, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the latest events to show.")] = 50,
    vm: Annotated[str, typer.Option(help="Show only the events of this VM.")] = "",
    config: options.Config = None,
    socket: options.Socket = None,
    as_json: options.Json = False,
) -> None:
    """Show the events of this host: transitions of VMs, leases, images and rollouts, oldest first.

    \b
    hearth events -f
    hearth events --vm hearth-small-01jx4c8h2m9v3k5n7p1q0r2s4t
    hearth events -n 1000 --json | jq 'select(.kind == "vm-failed")'
    """
    with options.build_client(socket, config) as client:
        latest, last = _fetch_latest(client, vm, lines)
        for event in latest:
            _show(event, as_json=as_json)
        if follow:
            with suppress(KeyboardInterrupt):
                _follow(client, vm, last, as_json=as_json)


def _fetch_latest(client: ApiClient, vm: str, count: int) -> tuple[list[EventDocument], int]:
    """Return the latest events, and the number of the very last one of the host."""
    last = client.get("/v1/events?limit=1", EventPage).document["last"]
    found: list[EventDocument] = []
    after = 0 if vm else max(0, last - count)
    while count and after < last:
        query = urlencode({"after": after, "limit": _PAGE} | ({"vm": vm} if vm else {}))
        page = client.get(f"/v1/events?{query}", EventPage).document
        if not page["events"]:
            break
        found, after = [*found, *page["events"]][-count:], page["next"]
    return found, max(last, after)


def _follow(client: ApiClient, vm: str, last: int, *, as_json: bool) -> None:
    """Show events as they arrive. When the agent becomes unreachable, print the error once and keep reconnecting."""
    path, is_reported = f"/v1/events?{urlencode({'vm': vm} if vm else {})}", False
    while True:
        try:
            for event in client.stream(path, after=last):
                _show(event, as_json=as_json)
                sys.stdout.flush()
                last, is_reported = event["number"], False
        except AgentUnreachableError as error:
            if not is_reported:
                print_error(error)
            is_reported = True
        time.sleep(_RETRY_S)


def _show(event: EventDocument | StreamedEvent, *, as_json: bool) -> None:
    if as_json:
        print_json(event)
        return
    level = "warning" if event["kind"].endswith(_BAD_KINDS) else "info"
    fields = {key: value for key, value in event.items() if key not in ("number", "kind", "at") and value}
    line = {"ts": f"{event['at'][:19]}Z", "level": level, "event": event["kind"], **fields}
    print_rendered(render_line(line, colour=is_colour_wanted()))
