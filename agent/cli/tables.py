"""The documents of the API as tables for a terminal, down to 80 columns. Pure: no I/O, the time comes in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from agent.cli.units import duration, short_digest, short_name, since, size, until
from agent.telemetry.render import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

Document = dict[str, Any]

STATE_STYLES: Final = {
    "creating": "cyan",
    "starting": "cyan",
    "ready": "green",
    "leased": "blue",
    "suspending": "magenta",
    "standby": "magenta",
    "resuming": "cyan",
    "failed": "red",
    "stopping": "yellow",
}
_PHASE_STYLES: Final = {"serving": "green", "rolled-back": "red"}


def status_view(host: Document, vms: list[Document], now: datetime) -> RenderableType:
    """Return the whole status of a host."""
    parts: list[RenderableType] = [headline(host), Text(), pool_table(host["pools"]), Text(), vm_table(vms, now)]
    if host["images"]:
        parts += [Text(), image_table(host["images"], now)]
    troubles = list(trouble_lines(host, now))
    if troubles:
        parts += [Text(), *troubles]
    return Group(*parts)


def headline(host: Document) -> Text:
    """Return the host and its resources in three lines."""
    identity, versions, slots = host["host"], host["versions"], host["slots"]
    held = [f"{slots[kind]} {kind}" for kind in ("ready", "leased", "starting", "stopping", "foreign") if slots[kind]]
    cpus, memory, disk = host["cpus"], host["memory_mib"], host["disk_bytes"]
    hypervisor = f"{versions['hypervisor']} {versions['hypervisor_version']}".strip()
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(identity["name"], style="bold")
    text.append(f"  {identity['os']} {identity['arch']}, {hypervisor}, ")
    text.append(f"hearth {versions['agent']}\n")
    text.append(f"slots   {slots['free']} of {slots['total']} free")
    text.append(f" ({', '.join(held)})\n" if held else "\n")
    text.append(f"room    {_figure(cpus['free'])} of {_figure(cpus['allocatable'])} cpus, ")
    text.append(f"{size(memory['free'] * 2**20)} of {size(memory['allocatable'] * 2**20)} memory, ")
    text.append(f"{size(disk['free'])} disk")
    return text


def pool_table(pools: Sequence[Document]) -> Table:
    """Return the pools: what they should have and what they have. Standby is shown where there is any."""
    standby = any(pool["standby"] for pool in pools)
    table = _table("POOL", "READY", *(["STANDBY"] if standby else []), "LEASED", "START", "WAIT", "VERSION", "ROLLOUT")
    for pool in pools:
        rollout = pool["rollout"] or {"phase": "", "serving": None, "target": None, "reason": ""}
        phase = Text(rollout["phase"], style=_PHASE_STYLES.get(rollout["phase"], "yellow"))
        if rollout["target"] and rollout["phase"] not in ("", "serving"):
            phase.append(f" {short_digest(rollout['target'])}")
        ready = Text(f"{pool['ready']}/{pool['warm']}", style="green" if pool["ready"] >= pool["warm"] else "yellow")
        table.add_row(
            pool["name"],
            ready,
            *([_count(pool["standby"])] if standby else []),
            _count(pool["leased"]),
            _count(pool["starting"]),
            _count(pool["waiting"]),
            short_digest(rollout["serving"]),
            phase,
        )
    return table


def rollout_table(rollouts: Iterable[Document], now: datetime) -> Table:
    """Return the rollouts with why they stand where they do."""
    table = _table("POOL", "PHASE", "FOR", "TARGET", "SERVING", "PREVIOUS")
    table.add_column("WHY", overflow="fold")
    for rollout in rollouts:
        table.add_row(
            rollout["pool"],
            Text(rollout["phase"], style=_PHASE_STYLES.get(rollout["phase"], "yellow")),
            since(rollout["since"], now) if rollout["since"] else "",
            *(short_digest(rollout[kind]) for kind in ("target", "serving", "previous")),
            Text(plain(rollout["reason"])),
        )
    return table


def vm_table(vms: Iterable[Document], now: datetime) -> Table:
    """Return the VMs with their state, the age of that state, and who holds them."""
    table = _table("VM", "STATE", "FOR")
    table.add_column("LEASE", overflow="fold")
    for vm in vms:
        state = Text(vm["state"], style=STATE_STYLES.get(vm["state"], ""))
        table.add_row(short_name(vm["name"]), state, since(vm["since"], now), _lease_or_failure(vm, now))
    return table


def image_table(images: Iterable[Document], now: datetime) -> Table:
    """Return the image versions with the progress of those on their way."""
    table = _table("IMAGE", "SIZE", "POOLS", "STATE")
    for image in images:
        table.add_row(
            short_digest(image["digest"]),
            size(image["allocated_bytes"]) if image["state"] == "here" else "",
            ", ".join(image["pools"]) or "-",
            _image_state(image, now),
        )
    return table


def trouble_lines(host: Document, now: datetime) -> Iterable[Text]:
    """Yield one line for each condition that is not as it should be, and for each pool that has an error."""
    for condition in host["conditions"]:
        if condition["problem"]:
            age = f" for {since(condition['since'], now)}" if condition["since"] else ""
            yield _trouble(f"{condition['type']} is {condition['status']}{age}", condition["message"])
    for pool in host["pools"]:
        if pool["error"]:
            yield _trouble(f"pool {pool['name']}", pool["error"])
    if host["assignment"]["error"]:
        yield _trouble("assignment", host["assignment"]["error"])


def _trouble(what: str, why: str) -> Text:
    return Text.assemble(("! ", "red bold"), (what, "bold"), f": {plain(why)}" if why else "", overflow="fold")


def _lease_or_failure(vm: Document, now: datetime) -> Text:
    if vm["failure"]:
        return Text(plain(f"{vm['failure']['cause']}: {vm['failure']['reason']}"), style="red")
    if vm["lease"]:
        return Text(plain(f"{vm['lease']['holder']}, {until(vm['lease']['expires_at'], now)} left"))
    return Text("-", style="dim")


def _image_state(image: Document, now: datetime) -> RenderableType:
    progress = image["progress"]
    if progress is None:
        retry = f", again in {until(image['retry_at'], now)}" if image["retry_at"] else ""
        return (
            Text(plain(f"{image['error']}{retry}"), style="red") if image["state"] == "failed" else Text(image["state"])
        )
    done, total = progress["done_bytes"], max(1, progress["total_bytes"])
    line = Table.grid(padding=(0, 1))
    eta = f" {duration(progress['eta_s'])} left" if progress["eta_s"] is not None else ""
    line.add_row(
        ProgressBar(total=total, completed=done, width=14),
        Text(f"{100 * done // total}% {size(progress['rate_bytes_per_s'])}/s{eta}", no_wrap=True),
    )
    return line


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", expand=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    return table


def _count(number: int) -> Text:
    return Text(str(number), style="" if number else "dim")


def _figure(number: float) -> str:
    return f"{number:g}"
