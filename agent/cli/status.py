"""`hearth status`."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Final

import typer

from agent.cli import options
from agent.cli.documents import HostDocument, VmList
from agent.cli.output import print_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from agent.cli.client import Answer, ApiClient

app = typer.Typer(add_completion=False)

REFRESH_S: Final = 1.0


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh the status until Ctrl-C.")] = False,
    config: options.Config = None,
    socket: options.Socket = None,
    as_json: options.Json = False,
) -> None:
    """Show slots, pools, VMs, images and conditions of this host.

    With --json, print the host document. With --json and --watch, print one line for each change.

    \b
    hearth status
    hearth status --watch
    hearth status --json | jq .slots
    """
    with options.build_client(socket, config) as client:
        if as_json and watch:
            with suppress(KeyboardInterrupt):
                _follow_json(client)
        elif as_json:
            print_json(client.get("/v1/host", HostDocument).document)
        else:
            _show(client, watch=watch)


def _show(client: ApiClient, *, watch: bool) -> None:
    from agent.cli.console import PlainConsole  # noqa: PLC0415 - rich is slow to import

    console, view = PlainConsole(), _StatusView(client)
    if watch:
        from agent.cli.live_view import show_live  # noqa: PLC0415

        show_live(console, lambda: view.render_fitted(console.width))
    else:
        console.print(view.render(console.width))


class _StatusView:
    """Renders the status. Downloads the host document only when it has changed."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._host: Answer[HostDocument] | None = None

    def render(self, width: int) -> RenderableType:
        """Return the current status in full length."""
        from agent.cli.tables import status_view  # noqa: PLC0415 - rich is slow to import

        host, vms = self._fetch()
        return status_view(host, vms.document["vms"], vms.at, width)

    def render_fitted(self, width: int) -> RenderableType:
        """Return the current status, cut to the height of the terminal."""
        from agent.cli.fitted_view import FittedView  # noqa: PLC0415 - rich is slow to import
        from agent.cli.tables import status_sections  # noqa: PLC0415

        host, vms = self._fetch()
        return FittedView(status_sections(host, vms.document["vms"], vms.at, width, one_line=True))

    def _fetch(self) -> tuple[HostDocument, Answer[VmList]]:
        if self._host is None:
            self._host = self._client.get("/v1/host", HostDocument)
        else:
            changed = self._client.get_if_changed("/v1/host", HostDocument, self._host.etag)
            self._host = changed or self._host
        return self._host.document, self._client.get("/v1/vms", VmList)


def _follow_json(client: ApiClient) -> None:
    etag = ""
    while True:
        answer = client.get_if_changed("/v1/host", HostDocument, etag)
        if answer is not None:
            print_json(answer.document)
            sys.stdout.flush()
            etag = answer.etag
        time.sleep(REFRESH_S)
