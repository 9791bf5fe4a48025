"""The console of every table: text from guests, registries, clients and other hosts is shown, never interpreted.

Rich would read markup such as `[red]` and `[link=…]` and codes such as `:smile:` in it, and pass on escape sequences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from agent.telemetry.log_rendering import escape_unprintable

if TYPE_CHECKING:
    from collections.abc import Iterable


class PlainConsole(Console):
    """A console that prints strings as they are, with unprintable characters escaped."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - the parameters of Console
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as `Console` does, and escape what a table did not escape in its cells."""
        for segment in super().render(renderable, options):
            if segment.control is None and not segment.text.isprintable():
                yield Segment("\n".join(map(escape_unprintable, segment.text.split("\n"))), segment.style)
            else:
                yield segment


def plain(cell: RenderableType, style: str = "") -> RenderableType:
    """Return a cell with its text as it is shown, so that a table reserves the right width for it."""
    if isinstance(cell, str):
        return Text(escape_unprintable(cell), style=style)
    if isinstance(cell, Text) and not cell.plain.isprintable():
        return Text(escape_unprintable(cell.plain), style=cell.style)
    return cell
