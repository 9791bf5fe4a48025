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
    hearth vms replace hearth-small-01jx…
    hearth vms why hearth-small-01jx…
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


@app.command()
def why(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The VM's name, also of one that is long gone.")],
    as_json: options.Json = False,
) -> None:
    """Tell the whole story of a VM: every event with its time, its failure, and what is kept as evidence.

    \b
    hearth vms why hearth-small-01jx…
    """
    with options.client(*context.obj) as client:
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


def _evidence(client: ApiClient, name: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = client.get(f"/v1/vms/{quote(name, safe='')}/evidence").document
    except ProblemError as error:
        if error.problem != "evidence-not-found":
            raise
        return None
    return found
