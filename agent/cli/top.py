"""`hearth top`: what each VM takes, from two looks at what they have taken so far."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from agent.cli import options
from agent.cli.output import print_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from agent.cli.client import ApiClient

app = typer.Typer(add_completion=False)

FIRST_S: Final = 1.0
"""How long the first look is: from then on each look goes back to the one before."""


@app.command()
def top(
    once: Annotated[bool, typer.Option("--once", help="Look once, for a second.")] = False,
    config: options.Config = None,
    socket: options.Socket = None,
    as_json: options.Json = False,
) -> None:
    """Watch what each VM takes of the host, the busiest first, until Ctrl-C. 100 % is one whole processor.

    With --json it looks once.

    \b
    hearth top
    hearth top --json | jq '.vms | max_by(.cpu_percent)'
    """
    with options.client(socket, config) as client:
        meter = Meter(client)
        time.sleep(FIRST_S)
        if as_json:
            print_json(meter.read())
            return
        from rich.console import Console  # noqa: PLC0415 - rich is slow to import

        from agent.cli.watching import watch  # noqa: PLC0415

        console = Console()

        def draw() -> RenderableType:
            from agent.cli.screen import Fitted  # noqa: PLC0415
            from agent.cli.usage_tables import usage_sections  # noqa: PLC0415

            return Fitted(usage_sections(meter.read(), console.width))

        if once:
            from agent.cli.usage_tables import usage_sections  # noqa: PLC0415

            machine, vms = usage_sections(meter.read(), console.width)
            console.print(machine, "", vms, sep="\n")
        else:
            watch(console, draw)


class Meter:
    """Turns what was taken so far into what is taken now."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._before: dict[str, Any] = self._ask()

    def read(self) -> dict[str, Any]:
        """Return the usage document with `cpu_percent` of the host and of each VM since the last look."""
        before, now = self._before, self._ask()
        self._before = now
        return rates(before, now)

    def _ask(self) -> dict[str, Any]:
        document: dict[str, Any] = self._client.get("/v1/usage").document
        return document


def rates(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return `now` with `cpu_percent` (of one processor) everywhere; the busiest VM first. New VMs begin at zero."""
    span_s = (datetime.fromisoformat(now["at"]) - datetime.fromisoformat(before["at"])).total_seconds()
    taken = {vm["name"]: vm["cpu_s"] for vm in before["vms"]}

    def percent(earlier_s: float, later_s: float) -> float:
        return round(100 * max(0.0, later_s - earlier_s) / span_s, 1) if span_s > 0 else 0.0

    vms = [{**vm, "cpu_percent": percent(taken.get(vm["name"], vm["cpu_s"]), vm["cpu_s"])} for vm in now["vms"]]
    host = {**now["host"], "cpu_percent": percent(before["host"]["cpu_busy_s"], now["host"]["cpu_busy_s"])}
    return {**now, "host": host, "vms": sorted(vms, key=lambda vm: (-vm["cpu_percent"], vm["name"]))}
