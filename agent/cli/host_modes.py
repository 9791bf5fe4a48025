"""`hearth cordon`, `uncordon` and `drain`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlencode

import typer

from agent.cli import options
from agent.cli.documents import HostDocument, ModeDocument, VmList
from agent.cli.exit_codes import ExitCode
from agent.cli.output import print_json, print_line
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from agent.cli.client import Answer, ApiClient

cordon_app = typer.Typer(add_completion=False)
uncordon_app = typer.Typer(add_completion=False)
drain_app = typer.Typer(add_completion=False)

_POLL_S: Final = 60.0
"""How long one request waits for a change of the host."""

_Reason = Annotated[str, typer.Option(help="The reason, which refused lease requests report.")]


class NotDrainedError(HearthError):
    """VMs remain at the end of --timeout. The host continues to drain."""

    code = "not-drained"


@cordon_app.command()
def cordon(
    reason: _Reason = "",
    config: options.Config = None,
    socket: options.Socket = None,
    as_json: options.Json = False,
) -> None:
    """Stop granting leases; keep pools warm and existing leases. The mode survives restarts of the agent.

    \b
    hearth cordon --reason "kernel update at noon"
    """
    with options.build_client(socket, config) as client:
        answer = _set_mode(client, "cordon", reason)
    text = "this host grants no leases; run `hearth uncordon` to grant leases again"
    print_json(answer.document) if as_json else print_line(text)


@uncordon_app.command()
def uncordon(config: options.Config = None, socket: options.Socket = None, as_json: options.Json = False) -> None:
    """Grant leases again after a cordon or a drain.

    \b
    hearth uncordon
    """
    with options.build_client(socket, config) as client:
        answer = _set_mode(client, "uncordon", "")
    print_json(answer.document) if as_json else print_line("this host grants leases")


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
    """Empty this host: grant no leases, start no VMs, remove idle VMs now and leased ones when their leases end.

    The mode survives restarts of the agent.

    \b
    hearth drain --reason "new disks"
    hearth drain --wait --timeout 2h && shutdown -h now
    """
    with options.build_client(socket, config) as client:
        answer = _set_mode(client, "drain", reason)
        if wait:
            _wait_until_empty(client, time.monotonic() + timeout)
    if as_json:
        print_json(answer.document)
    else:
        print_line("this host is empty" if wait else "this host drains; run `hearth uncordon` to stop it")
    return ExitCode.OK


def _set_mode(client: ApiClient, verb: str, reason: str) -> Answer[ModeDocument]:
    return client.request("POST", f"/v1/host/{verb}?{urlencode({'reason': reason})}", ModeDocument)


def _wait_until_empty(client: ApiClient, deadline_s: float) -> None:
    """Wait until the last VM is gone. Every change of the host ends a wait."""
    sequence = 0
    while vms := client.get("/v1/vms", VmList).document["vms"]:
        remaining_s = deadline_s - time.monotonic()
        if remaining_s <= 0:
            leased = sum(vm["state"] == "leased" for vm in vms)
            raise NotDrainedError(
                f"{len(vms)} VMs remain, {leased} of them leased",
                remedy="the host continues to drain; see `hearth vms`",
            )
        wait_s = min(_POLL_S, remaining_s)
        path = f"/v1/host?{urlencode({'after': sequence, 'wait_s': wait_s})}"
        sequence = client.request("GET", path, HostDocument, timeout_s=wait_s + _POLL_S).document["sequence"]
