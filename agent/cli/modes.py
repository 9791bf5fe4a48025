"""`hearth cordon`, `uncordon`, `drain`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlencode

import typer

from agent.cli import options
from agent.cli.exits import Exit
from agent.cli.output import print_json, say
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from agent.cli.client import Answer, ApiClient

cordon_app = typer.Typer(add_completion=False)
uncordon_app = typer.Typer(add_completion=False)
drain_app = typer.Typer(add_completion=False)

_LOOK_S: Final = 60.0
"""How long one request waits for a change before it asks again."""

_Reason = Annotated[str, typer.Option(help="Why, for everybody who asks for a lease.")]


class NotDrainedError(HearthError):
    """VMs were left when the time to wait was over. The host drains on."""

    code = "not-drained"


@cordon_app.command()
def cordon(
    reason: _Reason = "",
    config: options.Config = None,
    socket: options.Socket = None,
    as_json: options.Json = False,
) -> None:
    """Give no leases any more. The pools stay warm and leases that are given live on; it outlives the agent.

    \b
    hearth cordon --reason "kernel update at noon"
    """
    with options.client(socket, config) as client:
        answer = _set(client, "cordon", reason)
    print_json(answer.document) if as_json else say("this host gives no leases; `hearth uncordon` ends it")


@uncordon_app.command()
def uncordon(config: options.Config = None, socket: options.Socket = None, as_json: options.Json = False) -> None:
    """Give leases again, after a cordon or a drain.

    \b
    hearth uncordon
    """
    with options.client(socket, config) as client:
        answer = _set(client, "uncordon", "")
    print_json(answer.document) if as_json else say("this host gives leases")


@drain_app.command()
def drain(
    wait: Annotated[bool, typer.Option("--wait", help="Return when the last VM is gone.")] = False,
    timeout: Annotated[
        float, typer.Option(parser=options.parse_duration, metavar="TIME", help="How long to wait at most.")
    ] = 86400.0,
    reason: _Reason = "",
    config: options.Config = None,
    socket: options.Socket = None,
    as_json: options.Json = False,
) -> int:
    """Empty this host: no leases, no new VMs; idle VMs go now, leased ones with their leases. It outlives the agent.

    \b
    hearth drain --reason "new disks"
    hearth drain --wait --timeout 2h && shutdown -h now
    """
    with options.client(socket, config) as client:
        answer = _set(client, "drain", reason)
        if wait:
            _until_empty(client, time.monotonic() + timeout)
    if as_json:
        print_json(answer.document)
    else:
        say("this host is empty" if wait else "this host drains; `hearth uncordon` ends it")
    return Exit.OK


def _set(client: ApiClient, verb: str, reason: str) -> Answer:
    return client.ask("POST", f"/v1/host/{verb}?{urlencode({'reason': reason})}")


def _until_empty(client: ApiClient, deadline_s: float) -> None:
    """Wait for the last VM to go, woken by every change of the host."""
    sequence = 0
    while vms := client.get("/v1/vms").document["vms"]:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            leased = sum(vm["state"] == "leased" for vm in vms)
            raise NotDrainedError(
                f"{len(vms)} VMs are left, {leased} of them leased", remedy="the host drains on; see `hearth vms`"
            )
        wait_s = min(_LOOK_S, left_s)
        path = f"/v1/host?{urlencode({'after': sequence, 'wait_s': wait_s})}"
        sequence = client.ask("GET", path, timeout_s=wait_s + _LOOK_S).document["sequence"]
