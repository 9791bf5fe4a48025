"""`hearth vms`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import quote, urlencode

import typer

from agent.cli import options
from agent.cli.client import ProblemError
from agent.cli.documents import EventPage, EvidenceList, VmDetail, VmList
from agent.cli.output import print_json, print_line
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from pathlib import Path

    from agent.cli.client import ApiClient

_MAX_EVENTS: Final = 1000
"""Events of one VM in `why`. A VM has fewer, unless its lease is renewed for days."""


class UnknownVmError(HearthError):
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
    with options.build_client(socket, config) as client:
        answer = client.get("/v1/vms", VmList)
    if as_json:
        print_json(answer.document)
        return
    from agent.cli.console import PlainConsole  # noqa: PLC0415 - rich is slow to import
    from agent.cli.tables import vm_table  # noqa: PLC0415

    console = PlainConsole()
    console.print(vm_table(answer.document["vms"], answer.at, console.width))


@app.command()
def show(
    context: typer.Context,
    name: options.VmName,
    config: options.Config = None,
    socket: options.Socket = None,
    as_json: options.Json = False,
) -> None:
    """Show one VM with its address, its lease, and the latest result of each probe.

    \b
    hearth vms show 01jx4c
    """
    with _build_client(context, socket, config) as client:
        answer = client.get(f"/v1/vms/{quote(_full_name(client, name), safe='')}", VmDetail)
    if as_json:
        print_json(answer.document)
        return
    from agent.cli.console import PlainConsole  # noqa: PLC0415 - rich is slow to import
    from agent.cli.tables import vm_view  # noqa: PLC0415

    PlainConsole().print(vm_view(answer.document, answer.at))


@app.command()
def replace(
    context: typer.Context,
    name: options.VmName,
    reason: Annotated[str, typer.Option(help="The reason, for the log.")] = "requested on the command line",
    config: options.Config = None,
    socket: options.Socket = None,
    as_json: options.Json = False,
) -> None:
    """Tear a VM down; its pool starts a new one. A leased VM is refused: release its lease first.

    \b
    hearth vms replace 01jx4c --reason "builds are slow on it"
    """
    with _build_client(context, socket, config) as client:
        full_name = _full_name(client, name)
        client.request("DELETE", f"/v1/vms/{quote(full_name, safe='')}?{urlencode({'reason': reason})}", object)
    print_json({"vm": full_name}) if as_json else print_line(f"{full_name} is being replaced")


@app.command()
def why(
    context: typer.Context,
    name: options.VmName,
    config: options.Config = None,
    socket: options.Socket = None,
    as_json: options.Json = False,
) -> None:
    """Show the whole timeline of a VM, also of one that is gone: its events, its failure and its evidence.

    \b
    hearth vms why 01jx4c
    """
    with _build_client(context, socket, config) as client:
        name = _full_name(client, name)
        query = urlencode({"vm": name, "limit": _MAX_EVENTS})
        events = client.get(f"/v1/events?{query}", EventPage).document["events"]
        evidence = _fetch_evidence(client, name)
    if not events:
        raise UnknownVmError(f"the journal has no event of a VM {name}", remedy="see `hearth vms` or `hearth logs`")
    if as_json:
        print_json({"vm": name, "events": events, "evidence": evidence})
        return
    from agent.cli.console import PlainConsole  # noqa: PLC0415 - rich is slow to import
    from agent.cli.vm_timeline import render_timeline  # noqa: PLC0415

    PlainConsole().print(render_timeline(name, events, evidence))


def _build_client(context: typer.Context, socket: Path | None, config: Path | None) -> ApiClient:
    """Return a client by the options that follow the subcommand, else by those before it."""
    group_socket, group_config = context.obj
    return options.build_client(socket or group_socket, config or group_config)


def _full_name(client: ApiClient, name: str) -> str:
    """Return the name of the only VM whose name ends with `name`, or `name` itself when there is not exactly one."""
    found = [vm["name"] for vm in client.get("/v1/vms", VmList).document["vms"] if vm["name"].endswith(name)]
    return found[0] if len(found) == 1 else name


def _fetch_evidence(client: ApiClient, name: str) -> EvidenceList | None:
    try:
        return client.get(f"/v1/vms/{quote(name, safe='')}/evidence", EvidenceList).document
    except ProblemError as error:
        if error.problem != "evidence-not-found":
            raise
        return None
