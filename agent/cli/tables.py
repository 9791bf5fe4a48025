"""Tables of the API's documents for a terminal of any width. Pure: no I/O; callers pass the time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from agent.cli.console import plain
from agent.cli.units import duration, short_digest, short_name, since, size, until
from agent.telemetry.log_rendering import escape_unprintable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from agent.cli.documents import (
        HostDocument,
        ImageStatus,
        PoolRollout,
        PoolStatus,
        RolloutStatus,
        VmDetail,
        VmStatus,
    )

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
PHASE_STYLES: Final = {"serving": "green", "rolled-back": "red"}
_NEVER: Final = 1 << 30


def status_view(host: HostDocument, vms: list[VmStatus], now: datetime, width: int = 80) -> RenderableType:
    """Return the whole status of a host, whatever its length."""
    sections = status_sections(host, vms, now, width)
    spaced = [part for section in sections for part in (Text(), section)]
    return Group(*spaced[1:])


def status_sections(
    host: HostDocument, vms: list[VmStatus], now: datetime, width: int, *, one_line: bool = False
) -> list[RenderableType]:
    """Return the sections of a status from top to bottom; `one_line` limits each row to one line."""
    problems = list(problem_lines(host, now, one_line=one_line))
    parts: list[RenderableType] = [headline(host)]
    parts += [Group(*problems)] if problems else []
    parts += [pool_table(host["pools"], width), vm_table(vms, now, width, one_line=one_line)]
    return [*parts, image_table(host["images"], now, width)] if host["images"] else parts


def headline(host: HostDocument) -> Text:
    """Return the host and its resources in three lines."""
    identity, versions, slots = host["host"], host["versions"], host["slots"]
    counts = {
        "ready": slots["ready"], "leased": slots["leased"], "starting": slots["starting"],
        "stopping": slots["stopping"], "foreign": slots["foreign"],
    }  # fmt: skip
    held = [f"{count} {state}" for state, count in counts.items() if count]
    cpus, memory, disk = host["cpus"], host["memory_mib"], host["disk_bytes"]
    hypervisor = f"{versions['hypervisor']} {versions['hypervisor_version']}".strip()
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(escape_unprintable(identity["name"]), style="bold")
    text.append(escape_unprintable(f"  {identity['os']} {identity['arch']}, {hypervisor}, "))
    text.append(f"hearth {escape_unprintable(versions['agent'])}\n")
    text.append(f"slots   {slots['free']} of {slots['total']} free")
    text.append(f" ({', '.join(held)})\n" if held else "\n")
    text.append(f"free    {_number(cpus['free'])} of {_number(cpus['allocatable'])} cpus, ")
    text.append(f"{size(memory['free'] * 2**20)} of {size(memory['allocatable'] * 2**20)} memory, ")
    text.append(f"{size(disk['free'])} disk")
    return text


def pool_table(pools: Sequence[PoolStatus], width: int = 80) -> Table:
    """Return the pools with their targets and actual counts. STANDBY appears only when a pool has standby VMs."""
    standby = any(pool["standby"] for pool in pools)
    columns = {
        "POOL": 0, "READY": 0, "STANDBY": 70 if standby else _NEVER, "LEASED": 40, "START": 50, "WAIT": 50,
        "VERSION": 66, "ROLLOUT": 0,
    }  # fmt: skip
    shown = build_table(columns, width)
    for pool in pools:
        rollout = pool["rollout"]
        ready = Text(f"{pool['ready']}/{pool['warm']}", style="green" if pool["ready"] >= pool["warm"] else "yellow")
        cells: dict[str, RenderableType] = {
            "POOL": pool["name"], "READY": ready, "STANDBY": _count(pool["standby"]), "LEASED": _count(pool["leased"]),
            "START": _count(pool["starting"]), "WAIT": _count(pool["waiting"]),
            "VERSION": short_digest(rollout and rollout["serving"]), "ROLLOUT": _rollout(rollout),
        }  # fmt: skip
        add_row(shown, cells)
    return shown


def rollout_table(rollouts: Iterable[PoolRollout], now: datetime, width: int = 80) -> Table:
    """Return the rollouts with the reasons of their phases."""
    shown = build_table({"POOL": 0, "PHASE": 0, "FOR": 50, "TARGET": 0, "SERVING": 0, "PREVIOUS": 70, "WHY": 0}, width)
    for rollout in rollouts:
        cells: dict[str, RenderableType] = {
            "POOL": rollout["pool"],
            "PHASE": _phase(rollout),
            "FOR": since(rollout["since"], now) if rollout["since"] else "",
            "TARGET": short_digest(rollout["target"]),
            "SERVING": short_digest(rollout["serving"]),
            "PREVIOUS": short_digest(rollout["previous"]),
            "WHY": Text(_rollout_reason(rollout, now)),
        }
        add_row(shown, cells)
    return shown


def _rollout_reason(rollout: PoolRollout, now: datetime) -> str:
    if rollout["soak_until"] is not None:
        return f"the canary soaks for {until(rollout['soak_until'], now)} more"
    return escape_unprintable(rollout["reason"])


def vm_table(vms: Iterable[VmStatus], now: datetime, width: int = 80, *, one_line: bool = False) -> Table:
    """Return the VMs with their state, the age of that state, and their lease or failure."""
    shown = build_table({"VM": 0, "STATE": 0, "FOR": 0, "LEASE": 30}, width, one_line=one_line)
    for vm in vms:
        state = Text(vm["state"], style=STATE_STYLES.get(vm["state"], ""))
        name = short_name(vm["name"], name_width(width))
        add_row(
            shown, {"VM": name, "STATE": state, "FOR": since(vm["since"], now), "LEASE": _lease_or_failure(vm, now)}
        )
    return shown


def vm_view(vm: VmDetail, now: datetime) -> RenderableType:
    """Return the details of one VM."""
    address = vm["address"]
    ports = [f"{guest} at {address['host']}:{port}" for guest, port in address["ports"].items()] if address else []
    about = Table.grid(padding=(0, 2))
    for title, text in (
        ("state", Text(f"{vm['state']} for {since(vm['since'], now)}", style=STATE_STYLES.get(vm["state"], ""))),
        ("pool", Text(vm["pool"])),
        ("image", Text(vm["image"])),
        ("size", Text(f"{vm['cpus']} cpus, {size(vm['memory_mib'] * 2**20)} memory")),
        ("age", Text(since(vm["created_at"], now))),
        ("lease", Text((vm["lease"] and vm["lease"]["id"]) or "-")),
        ("held by", _lease_or_failure(vm, now)),
        ("ports", Text(", ".join(ports) or "-")),
    ):
        about.add_row(Text(title, style="dim"), plain(text))
    probes = build_table({"PROBE": 0, "OUTCOME": 0, "AGO": 0, "DETAIL": 0}, 80)
    for probe in vm["probes"]:
        outcome = Text(probe["outcome"], style="green" if probe["outcome"] == "pass" else "red")
        detail = Text(escape_unprintable(probe["detail"]))
        add_row(probes, {"PROBE": probe["probe"], "OUTCOME": outcome, "AGO": since(probe["at"], now), "DETAIL": detail})
    parts: list[RenderableType] = [plain(vm["name"], "bold"), about]
    return Group(*parts, *((Text(), probes) if vm["probes"] else ()))


def image_table(
    images: Iterable[ImageStatus], now: datetime, width: int = 80, *, with_references: bool = False
) -> Table:
    """Return the image versions with their pools and the progress of pulls."""
    columns = {"IMAGE": 0, "SIZE": 40, "POOLS": 50, "STATE": 0} | ({"REFERENCES": 60} if with_references else {})
    shown = build_table(columns, width)
    for image in images:
        cells: dict[str, RenderableType] = {
            "IMAGE": short_digest(image["digest"]),
            "SIZE": size(image["allocated_bytes"]) if image["state"] == "present" else "",
            "POOLS": ", ".join(image["pools"]) or "-",
            "STATE": _image_state(image, now),
            "REFERENCES": " ".join(image["references"]),
        }
        add_row(shown, cells)
    return shown


def problem_lines(host: HostDocument, now: datetime, *, one_line: bool = False) -> Iterable[Text]:
    """Yield a line for each condition that is a problem, each pool with an error, and a refused assignment."""
    for line in _problems(host, now):
        line.no_wrap, line.overflow = one_line, "ellipsis" if one_line else "fold"
        yield line


def _problems(host: HostDocument, now: datetime) -> Iterable[Text]:
    for condition in host["conditions"]:
        if condition["problem"]:
            age = f" for {since(condition['since'], now)}" if condition["since"] else ""
            yield _problem(f"{condition['type']} is {condition['status']}{age}", condition["message"])
    for pool in host["pools"]:
        if pool["error"]:
            yield _problem(f"pool {pool['name']}", pool["error"])
    if host["assignment"]["error"]:
        yield _problem("assignment", host["assignment"]["error"])


def _rollout(rollout: RolloutStatus | None) -> Text:
    if rollout is None:
        return Text()
    text = _phase(rollout)
    if rollout["target"] and rollout["phase"] != "serving":
        text.append(f" {short_digest(rollout['target'])}")
    return text


def _phase(rollout: RolloutStatus) -> Text:
    return Text(rollout["phase"], style=PHASE_STYLES.get(rollout["phase"], "yellow"))


def _problem(what: str, why: str) -> Text:
    reason = f": {escape_unprintable(why)}" if why else ""
    return Text.assemble(("! ", "red bold"), (escape_unprintable(what), "bold"), reason)


def _lease_or_failure(vm: VmStatus, now: datetime) -> Text:
    if vm["failure"]:
        return Text(escape_unprintable(f"{vm['failure']['cause']}: {vm['failure']['reason']}"), style="red")
    if vm["lease"]:
        return Text(escape_unprintable(f"{vm['lease']['holder']}, {until(vm['lease']['expires_at'], now)} left"))
    return Text("-", style="dim")


def _image_state(image: ImageStatus, now: datetime) -> RenderableType:
    progress = image["progress"]
    if progress is None:
        retry = f", retry in {until(image['retry_at'], now)}" if image["retry_at"] else ""
        return (
            Text(escape_unprintable(f"{image['error']}{retry}"), style="red")
            if image["state"] == "failed"
            else Text(image["state"])
        )
    done, total = progress["done_bytes"], max(1, progress["total_bytes"])
    line = Table.grid(padding=(0, 1))
    eta = f" {duration(progress['eta_s'])} left" if progress["eta_s"] is not None else ""
    line.add_row(
        ProgressBar(total=total, completed=done, width=14),
        Text(f"{100 * done // total}% {size(progress['rate_bytes_per_s'])}/s{eta}", no_wrap=True),
    )
    return line


def build_table(columns: Mapping[str, int], width: int, *, one_line: bool = False) -> Table:
    """Return a table of the columns whose minimum terminal width is at most `width`. Only the last one may wrap."""
    shown = Table(box=None, pad_edge=False, header_style="dim", expand=False, padding=(0, 2, 0, 0))
    last = list(columns)[-1]
    for column, min_width in columns.items():
        if min_width <= width:
            wraps = column == last and not one_line
            shown.add_column(column, no_wrap=not wraps, overflow="fold" if wraps else "ellipsis")
    return shown


def add_row(shown: Table, cells: Mapping[str, RenderableType]) -> None:
    """Add a row with the cells of the columns that the table has."""
    shown.add_row(*(plain(cells[str(column.header)]) for column in shown.columns))


def name_width(width: int) -> int:
    """Return the maximum length of a VM's name."""
    return 44 if width >= 78 else 27 if width >= 60 else 12 if width >= 36 else 6


def _count(number: int) -> Text:
    return Text(str(number), style="" if number else "dim")


def _number(number: float) -> str:
    return f"{number:g}"
