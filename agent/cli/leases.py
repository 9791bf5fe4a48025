"""`hearth lease`, `renew`, `release`."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from agent.cli import complete, options
from agent.cli.borrow import claimed, whoami
from agent.cli.client import TIMEOUT_S
from agent.cli.output import print_json, say
from agent.cli.units import until

if TYPE_CHECKING:
    from agent.cli.client import Answer

lease_app = typer.Typer(add_completion=False)
renew_app = typer.Typer(add_completion=False)
release_app = typer.Typer(add_completion=False)

_LeaseId = Annotated[str, typer.Argument(metavar="LEASE", help="The lease's id.", autocompletion=complete.leases)]
_Ttl = Annotated[
    float | None,
    typer.Option(parser=options.parse_duration, metavar="TIME", help="How long it lives: 90s, 15m, 2h."),
]


@lease_app.command()
def lease(
    pool: options.PoolName,
    ttl: _Ttl = None,
    wait: options.Wait = 0.0,
    holder: Annotated[str, typer.Option(help="Who uses it; user@host unless given.", show_default=False)] = "",
    key: Annotated[str | None, typer.Option(help="Idempotency key: asking again gives the same lease.")] = None,
    config: options.Config = None,
    socket: options.Socket = None,
    as_json: options.Json = False,
) -> None:
    """Claim a ready VM, waiting for one if asked. Ctrl-C leaves the line, and leaves no lease behind.

    With a key of yours a lease that was given stays, to be asked for again.

    \b
    hearth lease small
    hearth lease small --ttl 2h --wait 5m --holder job-4711
    ssh -p "$(hearth lease small --json | jq '.address.ports["22"]')" 127.0.0.1
    """
    wanted = {"pool": pool, "ttl_s": ttl, "wait_s": wait, "holder": holder or whoami(), "idempotency_key": key}
    if key is None:
        with claimed(partial(options.client, socket, config), wanted) as answer:
            _show(answer, as_json=as_json)
            sys.stdout.flush()  # else nobody is told of it yet
        return
    with options.client(socket, config) as client:
        _show(client.ask("POST", "/v1/leases", wanted, timeout_s=wait + TIMEOUT_S), as_json=as_json)


@renew_app.command()
def renew(
    lease_id: _LeaseId,
    ttl: _Ttl = None,
    config: options.Config = None,
    socket: options.Socket = None,
    as_json: options.Json = False,
) -> None:
    """Let a lease live on from now, for TIME or as long as it was given first.

    \b
    hearth renew 01jx4cd0… --ttl 2h
    """
    with options.client(socket, config) as client:
        answer = client.ask("PATCH", f"/v1/leases/{quote(lease_id, safe='')}", {"ttl_s": ttl})
    _show(answer, as_json=as_json)


@release_app.command()
def release(lease_id: _LeaseId, config: options.Config = None, socket: options.Socket = None) -> None:
    """End a lease. Its VM is torn down at once: a VM is used for one job.

    \b
    hearth release 01jx4cd0…
    """
    with options.client(socket, config) as client:
        client.ask("DELETE", f"/v1/leases/{quote(lease_id, safe='')}")
    say(f"{lease_id} is released")


def _show(answer: Answer, *, as_json: bool) -> None:
    lease: dict[str, Any] = answer.document
    if as_json:
        print_json(lease)
        return
    address = lease["address"]
    ports = [f"{guest} at {address['host']}:{port}" for guest, port in address["ports"].items()] if address else []
    say(f"lease    {lease['id']}")
    say(f"vm       {lease['vm']}")
    say(f"expires  in {until(lease['expires_at'], answer.at)}")
    say(f"ports    {', '.join(ports) or 'not known yet: ask again'}")
    if unhealthy := lease["unhealthy"]:
        say(f"unhealthy     {unhealthy['cause']}: {unhealthy['reason']}")
    say(f"end it with: hearth release {lease['id']}")
