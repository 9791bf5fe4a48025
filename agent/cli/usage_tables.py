"""Tables of the usage of a host and its VMs for a terminal. Pure: no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from agent.cli.tables import STATE_STYLES, add_row, build_table, name_width
from agent.cli.units import short_name, size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from agent.cli.usage_documents import HostRates, UsageRates, VmRates

_BUSY: Final = 0.9
_BAR_WIDTH: Final = 24


def usage_sections(usage: UsageRates, width: int) -> list[RenderableType]:
    """Return the load of the host, and the usage of its VMs in the given order."""
    return [_host_grid(usage["host"], width), _vm_table(usage["vms"], width)]


def _host_grid(host: HostRates, width: int) -> Table:
    used_bytes = host["memory_total_bytes"] - host["memory_available_bytes"]
    lines = (
        ("cpus", host["cpu_percent"], 100 * host["cpus"],
         f"{host['cpu_percent'] / 100:.1f} of {host['cpus']}, load {host['load_1m']:.2f}"),
        ("memory", used_bytes, host["memory_total_bytes"], f"{size(used_bytes)} of {size(host['memory_total_bytes'])}"),
    )  # fmt: skip
    grid = Table.grid(padding=(0, 2))
    for title, used, total, text in lines:
        bar = ProgressBar(
            total=total, completed=min(used, total), width=max(8, min(_BAR_WIDTH, width - 40)),
            complete_style="red" if used > _BUSY * total else "green", finished_style="red",
        )  # fmt: skip
        grid.add_row(Text(title), bar, Text(text, no_wrap=True, overflow="ellipsis"))
    return grid


def _vm_table(vms: list[VmRates], width: int) -> Table:
    table = build_table({"VM": 0, "STATE": 46, "CPU": 0, "OF": 78, "MEMORY": 0, "OF ": 78}, width, one_line=True)
    for column in table.columns:
        if column.header not in ("VM", "STATE"):
            column.justify = "right"
    for vm in vms:
        cells: dict[str, RenderableType] = {
            "VM": short_name(vm["name"], name_width(width)),
            "STATE": Text(vm["state"], style=STATE_STYLES.get(vm["state"], "")),
            "CPU": Text(f"{vm['cpu_percent']:.0f} %", style="" if vm["cpu_percent"] >= 1 else "dim"),
            "OF": f"{100 * vm['cpus']} %",
            "MEMORY": size(vm["resident_bytes"]),
            "OF ": size(vm["memory_mib"] * 2**20),
        }
        add_row(table, cells)
    return table
