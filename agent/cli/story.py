"""The story of one VM as a timeline, from its events and what is kept of it. Pure: no I/O."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from agent.cli.units import duration, short_digest, size
from agent.telemetry.log_rendering import escape_unprintable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Document = dict[str, Any]

_STYLES: Final[Mapping[str, str]] = {"vm-ready": "green", "lease-granted": "blue", "vm-gone": "dim"}
_BAD: Final = ("failed", "broken", "unhealthy")


def story(vm: str, events: list[Document], evidence: Document | None) -> RenderableType:
    """Return the whole story: in one sentence, event by event, and where its evidence is."""
    parts: list[RenderableType] = [_headline(vm, events), verdict(events), Text(), _timeline(events)]
    if evidence is not None:
        parts += [Text(), *_files(evidence)]
    return Group(*parts)


def verdict(events: list[Document]) -> Text:
    """Return what became of the VM, in one sentence."""
    failure = next((event for event in events if event["kind"] == "vm-failed"), None)
    gone = any(event["kind"] == "vm-gone" for event in events)
    if failure is not None:
        lived = duration(_at(failure) - _at(events[0]))
        text = escape_unprintable(f"It failed after {lived}: {failure['cause']}: {failure['detail']}")
        return Text(text + (". It is gone." if gone else "."), style="red")
    if gone:
        reason = next((event["detail"] for event in events if event["kind"] == "vm-stopping"), "")
        return Text(
            f"It ended as it should: {escape_unprintable(reason)}." if reason else "It ended as it should.",
            style="green",
        )
    return Text("It did not fail, and is not gone.")


def _headline(vm: str, events: list[Document]) -> Text:
    known = {key: next((event[key] for event in events if event[key]), None) for key in ("pool", "image")}
    text = Text(vm, style="bold")
    text.append(f"  pool {known['pool'] or '-'}, image {short_digest(known['image'])}", style="")
    return text


def _timeline(events: list[Document]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("WHEN", no_wrap=True)
    table.add_column("AFTER", no_wrap=True, justify="right")
    table.add_column("WHAT", no_wrap=True)
    table.add_column("DETAIL", overflow="fold")
    before = _at(events[0])
    for event in events:
        at = _at(event)
        style = (
            "red" if event["kind"].endswith(_BAD) or "unhealthy" in event["kind"] else _STYLES.get(event["kind"], "")
        )
        after = f"+{(at - before).total_seconds():.1f}s"
        table.add_row(f"{at:%Y-%m-%d %H:%M:%S}", after, Text(event["kind"], style=style), Text(_detail(event)))
        before = at
    return table


def _detail(event: Document) -> str:
    parts = [event["cause"] or "", event["detail"], f"lease {event['lease']}" if event["lease"] else ""]
    took = f"took {event['duration_s']:.2f} s" if event["duration_s"] is not None else ""
    return escape_unprintable(", ".join(part for part in (*parts, took) if part))


def _files(evidence: Document) -> Iterable[RenderableType]:
    yield Text(f"evidence in {evidence['directory']}", style="dim")
    for file in evidence["files"]:
        yield Text(f"  {file['name']}  {size(file['size_bytes'])}")


def _at(event: Document) -> datetime:
    return datetime.fromisoformat(event["at"])
