"""`hearth top`: the processor share and memory of each VM."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from agent.cli import options
from agent.cli.output import print_json
from agent.cli.usage_documents import UsageDocument, UsageRates

if TYPE_CHECKING:
    from rich.console import RenderableType

    from agent.cli.client import ApiClient
    from agent.cli.usage_documents import HostRates, VmRates

app = typer.Typer(add_completion=False)

FIRST_S: Final = 1.0
"""The time between the first two readings. Later readings compare with the reading before."""


@app.command()
def top(
    once: Annotated[bool, typer.Option("--once", help="Print the usage of one second and exit.")] = False,
    config: options.Config = None,
    socket: options.Socket = None,
    as_json: options.Json = False,
) -> None:
    """Show the processor share and memory of each VM, the busiest first, until Ctrl-C.

    100 % is one whole processor. With --json, print one reading and exit.

    \b
    hearth top
    hearth top --json | jq '.vms | max_by(.cpu_percent)'
    """
    with options.build_client(socket, config) as client:
        sampler = UsageSampler(client)
        time.sleep(FIRST_S)
        if as_json:
            print_json(sampler.read())
        else:
            _show(sampler, once=once)


def _show(sampler: UsageSampler, *, once: bool) -> None:
    from agent.cli.console import PlainConsole  # noqa: PLC0415 - rich is slow to import
    from agent.cli.fitted_view import FittedView  # noqa: PLC0415
    from agent.cli.live_view import show_live  # noqa: PLC0415
    from agent.cli.usage_tables import usage_sections  # noqa: PLC0415

    console = PlainConsole()

    def draw() -> RenderableType:
        return FittedView(usage_sections(sampler.read(), console.width))

    if once:
        host, vms = usage_sections(sampler.read(), console.width)
        console.print(host, "", vms, sep="\n")
    else:
        show_live(console, draw)


class UsageSampler:
    """Computes processor shares from consecutive readings of the agent's usage document."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._before = self._fetch()

    def read(self) -> UsageRates:
        """Return the usage with `cpu_percent` since the reading before."""
        before, now = self._before, self._fetch()
        self._before = now
        return compute_rates(before, now)

    def _fetch(self) -> UsageDocument:
        return self._client.get("/v1/usage", UsageDocument).document


def compute_rates(before: UsageDocument, now: UsageDocument) -> UsageRates:
    """Return `now` with `cpu_percent` (100 is one processor), the busiest VM first. A new VM has 0 %."""
    span_s = (datetime.fromisoformat(now["at"]) - datetime.fromisoformat(before["at"])).total_seconds()
    cpu_s_before = {vm["name"]: vm["cpu_s"] for vm in before["vms"]}

    def percent(earlier_s: float, later_s: float) -> float:
        return round(100 * max(0.0, later_s - earlier_s) / span_s, 1) if span_s > 0 else 0.0

    vms: list[VmRates] = [
        {**vm, "cpu_percent": percent(cpu_s_before.get(vm["name"], vm["cpu_s"]), vm["cpu_s"])} for vm in now["vms"]
    ]
    busy_s = (before["host"]["cpu_busy_s"], now["host"]["cpu_busy_s"])
    host: HostRates = {**now["host"], "cpu_percent": percent(*busy_s)}
    return {"at": now["at"], "host": host, "vms": sorted(vms, key=lambda vm: (-vm["cpu_percent"], vm["name"]))}
