"""`hearth status`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from agent.cli import options
from agent.cli.client import AgentUnreachableError, ApiClient
from agent.cli.output import print_json

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

app = typer.Typer(add_completion=False)

REFRESH_S: Final = 1.0


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it, until Ctrl-C.")] = False,
    config: options.Config = None,
    socket: options.Socket = None,
    as_json: options.Json = False,
) -> None:
    """Show slots, pools, VMs, images and conditions of this host.

    With --json it is the host document; with --watch as well, one line for each change.

    \b
    hearth status
    hearth status --watch
    hearth status --json | jq .slots
    """
    with options.client(socket, config) as client:
        if as_json:
            _follow_json(client) if watch else print_json(client.get("/v1/host").document)
            return
        from rich.console import Console  # noqa: PLC0415 - rich is slow to import

        console = Console()
        if watch:
            _watch(client, console)
        else:
            console.print(_View(client).render())


class _View:
    """The status on a screen. The host document is sent only as often as it changes."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._etag = ""
        self._host: dict[str, Any] = {}

    def render(self) -> RenderableType:
        """Return the status as of now."""
        from agent.cli.tables import status_view  # noqa: PLC0415 - rich is slow to import

        answer = self._client.get("/v1/host", etag=self._etag)
        if answer.document is not None:
            self._host, self._etag = answer.document, answer.etag
        return status_view(self._host, self._client.get("/v1/vms").document["vms"], answer.at)


def _watch(client: ApiClient, console: Console) -> None:
    """Show the status until Ctrl-C. An agent that goes away is waited for: it may be restarting."""
    from rich.live import Live  # noqa: PLC0415 - rich is slow to import
    from rich.text import Text  # noqa: PLC0415

    view = _View(client)
    shown = view.render()
    try:
        with Live(shown, console=console, screen=console.is_terminal, auto_refresh=False) as live:
            while True:
                time.sleep(REFRESH_S)
                try:
                    live.update(view.render(), refresh=True)
                except AgentUnreachableError as error:
                    live.update(Text(f"{error.message}; waiting for it", style="yellow"), refresh=True)
    except KeyboardInterrupt:
        return


def _follow_json(client: ApiClient) -> None:
    etag = ""
    try:
        while True:
            answer = client.get("/v1/host", etag=etag)
            if answer.document is not None:
                print_json(answer.document)
                etag = answer.etag
            time.sleep(REFRESH_S)
    except KeyboardInterrupt:
        return
