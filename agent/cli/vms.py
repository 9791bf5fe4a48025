"""`hearth vms`."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote, urlencode

import typer

from agent.cli import options
from agent.cli.output import print_json, say

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def vms(
    context: typer.Context, config: options.Config = None, socket: options.Socket = None, as_json: options.Json = False
) -> None:
    """List the VMs of this host, oldest first.

    \b
    hearth vms
    hearth vms --json | jq '.vms[] | select(.state == "ready") | .name'
    hearth vms replace hearth-small-01jx…
    """
    if context.invoked_subcommand:
        context.obj = (socket, config)
        return
    with options.client(socket, config) as client:
        answer = client.get("/v1/vms")
    if as_json:
        print_json(answer.document)
        return
    from rich.console import Console  # noqa: PLC0415 - rich is slow to import

    from agent.cli.tables import vm_table  # noqa: PLC0415

    Console().print(vm_table(answer.document["vms"], answer.at))


@app.command()
def replace(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The VM's name.")],
    reason: Annotated[str, typer.Option(help="Why, for the log.")] = "asked for on the command line",
) -> None:
    """Tear a VM down and let its pool refill. A leased VM is refused: release its lease first."""
    with options.client(*context.obj) as client:
        client.ask("DELETE", f"/v1/vms/{quote(name, safe='')}?{urlencode({'reason': reason})}")
    say(f"{name} is being replaced")
