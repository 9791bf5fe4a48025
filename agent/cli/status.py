"""`hearth status`."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from agent.cli import options
from agent.cli.output import print_json

if TYPE_CHECKING:
    from datetime import datetime

    from rich.console import Console, RenderableType

    from agent.cli.client import ApiClient

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
            console.print(_View(client).whole(console.width))


class _View:
    """The status on a screen. The host document is sent only as often as it changes."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._etag = ""
        self._host: dict[str, Any] = {}

    def whole(self, width: int) -> RenderableType:
        """Return the status as of now, as long as it is."""
        from agent.cli.tables import status_view  # noqa: PLC0415 - rich is slow to import

        vms, now = self._look()
        return status_view(self._host, vms, now, width)

    def fitted(self, width: int) -> RenderableType:
        """Return the status as of now, cut to the terminal."""
        from agent.cli.screen import Fitted  # noqa: PLC0415 - rich is slow to import
        from agent.cli.tables import status_sections  # noqa: PLC0415

        vms, now = self._look()
        return Fitted(status_sections(self._host, vms, now, width, one_line=True))

    def _look(self) -> tuple[list[dict[str, Any]], datetime]:
        """Bring the host document up to date and return the VMs, with the host's time."""
        answer = self._client.get("/v1/host", etag=self._etag)
        if answer.document is not None:
            self._host, self._etag = answer.document, answer.etag
        return self._client.get("/v1/vms").document["vms"], answer.at


def _watch(client: ApiClient, console: Console) -> None:
    """Show the status until Ctrl-C."""
    from agent.cli.watching import watch  # noqa: PLC0415 - rich is slow to import

    view = _View(client)
    watch(console, lambda: view.fitted(console.width))


def _follow_json(client: ApiClient) -> None:
    etag = ""
    try:
        while True:
            answer = client.get("/v1/host", etag=etag)
            if answer.document is not None:
                print_json(answer.document)
                sys.stdout.flush()
                etag = answer.etag
            time.sleep(REFRESH_S)
    except KeyboardInterrupt:
        return
