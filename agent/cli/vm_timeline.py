"""The timeline of one VM for a terminal, from its events and its evidence. Pure: no I/O."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from agent.cli.console import plain
from agent.cli.units import duration, short_digest, size
from agent.telemetry.log_rendering import escape_unprintable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.cli.documents import EventDocument, EvidenceList

_STYLES: Final[Mapping[str, str]] = {"vm-ready": "green", "lease-granted": "blue", "vm-gone": "dim"}
_BAD: Final = ("failed", "broken", "unhealthy")


def render_timeline(vm: str, events: list[EventDocument], evidence: EvidenceList | None) -> RenderableType:
    """Return a summary, every event, and the files of the evidence. `events` must not be empty."""
    parts: list[RenderableType] = [_headline(vm, events), summarize(events), Text(), _event_table(events)]
    if evidence is not None:
        parts += [Text(), *_file_lines(evidence)]
    return Group(*parts)


def summarize(events: list[EventDocument]) -> Text:
    """Return in one sentence how the VM ended, or that it did not."""
    failure = next((event for event in events if event["kind"] == "vm-failed"), None)
    is_gone = any(event["kind"] == "vm-gone" for event in events)
    if failure is not None:
        age = duration(_time(failure) - _time(events[0]))
        text = escape_unprintable(f"It failed after {age}: {failure['cause']}: {failure['detail']}")
        return Text(text + (". It is gone." if is_gone else "."), style="red")
    if is_gone:
        reason = next((event["detail"] for event in events if event["kind"] == "vm-stopping"), "")
        text = f"It ended without a failure: {escape_unprintable(reason)}." if reason else "It ended without a failure."
        return Text(text, style="green")
    return Text("It has not failed and still exists.")


def _headline(vm: str, events: list[EventDocument]) -> Text:
    pool, image = _first_value(events, "pool"), _first_value(events, "image")
    text = Text(escape_unprintable(vm), style="bold")
    text.append(escape_unprintable(f"  pool {pool or '-'}, image {short_digest(image)}"), style="")
    return text


def _first_value(events: list[EventDocument], key: Literal["pool", "image"]) -> str | None:
    return next((event[key] for event in events if event[key]), None)


def _event_table(events: list[EventDocument]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("WHEN", no_wrap=True)
    table.add_column("AFTER", no_wrap=True, justify="right")
    table.add_column("WHAT", no_wrap=True)
    table.add_column("DETAIL", overflow="fold")
    before = _time(events[0])
    for event in events:
        at = _time(event)
        after = f"+{(at - before).total_seconds():.1f}s"
        kind = Text(event["kind"], style=_style(event["kind"]))
        table.add_row(f"{at:%Y-%m-%d %H:%M:%S}", after, plain(kind), plain(_detail(event)))
        before = at
    return table


def _style(kind: str) -> str:
    is_bad = kind.endswith(_BAD) or "unhealthy" in kind
    return "red" if is_bad else _STYLES.get(kind, "")


def _detail(event: EventDocument) -> str:
    parts = [event["cause"] or "", event["detail"], f"lease {event['lease']}" if event["lease"] else ""]
    took = f"took {event['duration_s']:.2f} s" if event["duration_s"] is not None else ""
    return ", ".join(part for part in (*parts, took) if part)


def _file_lines(evidence: EvidenceList) -> Iterable[RenderableType]:
    yield plain(f"evidence in {evidence['directory']}", "dim")
    for file in evidence["files"]:
        yield plain(f"  {file['name']}  {size(file['size_bytes'])}")


def _time(event: EventDocument) -> datetime:
    return datetime.fromisoformat(event["at"])
