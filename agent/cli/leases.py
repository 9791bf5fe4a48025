"""`hearth lease`, `renew` and `release`."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from agent.cli import options
from agent.cli.client import TIMEOUT_S
from agent.cli.documents import LeaseDocument
from agent.cli.output import print_json, print_line
from agent.cli.temporary_lease import claimed_lease, default_holder
from agent.cli.units import until

if TYPE_CHECKING:
    from agent.cli.client import Answer

lease_app = typer.Typer(add_completion=False)
renew_app = typer.Typer(add_completion=False)
release_app = typer.Typer(add_completion=False)

_LeaseId = Annotated[
    str, typer.Argument(metavar="LEASE", help="The lease's id.", autocompletion=options.complete_leases)
]
_Ttl = Annotated[
    float | None,
    typer.Option(parser=options.parse_duration, metavar="TIME", help="Time until the lease expires: 90s, 15m, 2h."),
]


@lease_app.command()
def lease(
    pool: options.PoolName,
    ttl: _Ttl = None,
    wait: options.Wait = 0.0,
    holder: Annotated[str, typer.Option(help="The user of the VM. Default: user@host.", show_default=False)] = "",
    key: Annotated[str | None, typer.Option(help="Idempotency key: a repeated request returns the same lease.")] = None,
    config: options.Config = None,
    socket: options.Socket = None,
    as_json: options.Json = False,
) -> None:
    """Claim a ready VM; wait for one with --wait. Ctrl-C cancels the request and leaves no lease behind.

    With --key, a lease that was granted stays after Ctrl-C. Repeat the command to get it.

    \b
    hearth lease small
    hearth lease small --ttl 2h --wait 5m --holder job-4711
    ssh -p "$(hearth lease small --json | jq '.address.ports["22"]')" 127.0.0.1
    """
    body = {"pool": pool, "ttl_s": ttl, "wait_s": wait, "holder": holder or default_holder(), "idempotency_key": key}
    if key is None:
        with claimed_lease(partial(options.build_client, socket, config), body) as answer:
            _show(answer, as_json=as_json)
            sys.stdout.flush()  # an error here must release the lease, because its id was not printed
        return
    with options.build_client(socket, config) as client:
        answer = client.request("POST", "/v1/leases", LeaseDocument, body, timeout_s=wait + TIMEOUT_S)
    _show(answer, as_json=as_json)


@renew_app.command()
def renew(
    lease_id: _LeaseId,
    ttl: _Ttl = None,
    config: options.Config = None,
    socket: options.Socket = None,
    as_json: options.Json = False,
) -> None:
    """Extend a lease to TIME from now, or to its first duration from now.

    \b
    hearth renew 01jx4cd0 --ttl 2h
    """
    with options.build_client(socket, config) as client:
        path = f"/v1/leases/{quote(lease_id, safe='')}"
        answer = client.request("PATCH", path, LeaseDocument, {"ttl_s": ttl})
    _show(answer, as_json=as_json)


@release_app.command()
def release(
    lease_id: _LeaseId, config: options.Config = None, socket: options.Socket = None, as_json: options.Json = False
) -> None:
    """End a lease. Its VM is torn down immediately, because a VM is used for one job only.

    \b
    hearth release 01jx4cd0
    """
    with options.build_client(socket, config) as client:
        client.request("DELETE", f"/v1/leases/{quote(lease_id, safe='')}", object)
    print_json({"released": lease_id}) if as_json else print_line(f"{lease_id} is released")


def _show(answer: Answer[LeaseDocument], *, as_json: bool) -> None:
    lease = answer.document
    if as_json:
        print_json(lease)
        return
    address = lease["address"]
    ports = [f"{guest} at {address['host']}:{port}" for guest, port in address["ports"].items()] if address else []
    print_line(f"lease      {lease['id']}")
    print_line(f"vm         {lease['vm']}")
    print_line(f"expires    in {until(lease['expires_at'], answer.at)}")
    print_line(f"ports      {', '.join(ports) or 'not known yet; see `hearth vms show ' + lease['vm'] + '`'}")
    if unhealthy := lease["unhealthy"]:
        print_line(f"unhealthy  {unhealthy['cause']}: {unhealthy['reason']}")
    print_line(f"end it with: hearth release {lease['id']}")
