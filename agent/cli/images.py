"""`hearth images`."""

from __future__ import annotations

import typer

from agent.cli import options
from agent.cli.output import print_json

app = typer.Typer(add_completion=False)


@app.command()
def images(config: options.Config = None, socket: options.Socket = None, as_json: options.Json = False) -> None:
    """List the image versions of a host: those that are here, and how far those are that are on their way.

    \b
    hearth images
    hearth images --json | jq '.images[] | select(.state == "pulling") | .progress'
    """
    with options.client(socket, config) as client:
        answer = client.get("/v1/images")
    if as_json:
        print_json(answer.document)
        return
    from rich.console import Console  # noqa: PLC0415 - rich is slow to import

    from agent.cli.tables import image_table  # noqa: PLC0415

    console = Console()
    console.print(image_table(answer.document["images"], answer.at, console.width))
