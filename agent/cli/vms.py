"""`hearth vms`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import quote, urlencode

import typer

from agent.cli import options
from agent.cli.client import ProblemError
from agent.cli.output import print_json, say
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from pathlib import Path

    from agent.cli.client import ApiClient

_EVENTS: Final = 1000
"""Most events of one VM that are asked for: far more than a life has, unless its lease is renewed for days."""


class NoStoryError(HearthError):
    """The journal has no event of that VM."""

    code = "vm-not-found"


app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def vms(
    context: typer.Context, config: options.Config = None, socket: options.Socket = None, as_json: options.Json = False
) -> None:
    """List the VMs of this host, oldest first.

    \b
    hearth vms
    hearth vms --json | jq '.vms[] | select(.state == "ready") | .name'
    hearth vms show 01jx4c
    hearth vms why 01jx4c
    """
    context.obj = (socket, config)
    if context.invoked_subcommand:
        return
    with options.client(socket, config) as client:
        answer = client.get("/v1/vms")
    if as_json:
        print_json(answer.document)
        return
    from rich.console import Console  # noqa: PLC0415 - rich is slow to import

    from agent.cli.tables import vm_table  # noqa: PLC0415

    console = Console()
    console.print(vm_table(answer.document["vms"], answer.at, console.width))


@app.command()
def show(
    context: typer.Context,
    name: options.VmName,
    config: options.Config = None,
    socket: options.Socket = None,
    as_json: options.Json = False,
) -> None:
    """Show one VM: its address, its lease, and the latest answer of each probe.

    \b
    hearth vms show 01jx4c
    """
    with _client(context, socket, config) as client:
        answer = client.get(f"/v1/vms/{quote(_whole(client, name), safe='')}")
    if as_json:
        print_json(answer.document)
        return
    from rich.console import Console  # noqa: PLC0415 - rich is slow to import

    from agent.cli.tables import vm_view  # noqa: PLC0415

    Console().print(vm_view(answer.document, answer.at))


@app.command()
def replace(
    context: typer.Context,
    name: options.VmName,
    reason: Annotated[str, typer.Option(help="Why, for the log.")] = "asked for on the command line",
    config: options.Config = None,
    socket: options.Socket = None,
) -> None:
    """Tear a VM down and let its pool refill. A leased VM is refused: release its lease first.

    \b
    hearth vms replace 01jx4c --reason "odd noises"
    """
    with _client(context, socket, config) as client:
        whole = _whole(client, name)
        client.ask("DELETE", f"/v1/vms/{quote(whole, safe='')}?{urlencode({'reason': reason})}")
    say(f"{whole} is being replaced")


@app.command()
def why(
    context: typer.Context,
    name: options.VmName,
    config: options.Config = None,
    socket: options.Socket = None,
    as_json: options.Json = False,
) -> None:
    """Tell the whole story of a VM, also of one that is long gone: every event, its failure, and what is kept of it.

    \b
    hearth vms why hearth-small-01jx…
    """
    with _client(context, socket, config) as client:
        name = _whole(client, name)
        query = urlencode({"vm": name, "limit": _EVENTS})
        events = client.get(f"/v1/events?{query}").document["events"]
        evidence = _evidence(client, name)
    if not events:
        raise NoStoryError(f"the journal tells nothing of a VM {name}", remedy="see `hearth vms`, `hearth logs`")
    if as_json:
        print_json({"vm": name, "events": events, "evidence": evidence})
        return
    from rich.console import Console  # noqa: PLC0415 - rich is slow to import

    from agent.cli.story import story  # noqa: PLC0415

    Console().print(story(name, events, evidence))


def _client(context: typer.Context, socket: Path | None, config: Path | None) -> ApiClient:
    """Return the client that the options before or after the subcommand name."""
    before_socket, before_config = context.obj
    return options.client(socket or before_socket, config or before_config)


def _whole(client: ApiClient, name: str) -> str:
    """Return the name of the one VM here that ends so; the name itself where that is none, or more than one."""
    found = [vm["name"] for vm in client.get("/v1/vms").document["vms"] if vm["name"].endswith(name)]
    return str(found[0]) if len(found) == 1 else name


def _evidence(client: ApiClient, name: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = client.get(f"/v1/vms/{quote(name, safe='')}/evidence").document
    except ProblemError as error:
        if error.problem != "evidence-not-found":
            raise
        return None
    return found
