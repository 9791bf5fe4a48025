"""A view that fits a terminal: its parts from top to bottom, each cut short where there is not room for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.segment import Segment
from rich.style import Style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

_HEAD: Final = 2
"""Lines of a part that stay as long as anything can: a table's heading and its first row."""


class Fitted:
    """Renders its sections within the height there is, with a blank line between them where that has room."""

    def __init__(self, sections: Sequence[RenderableType]) -> None:
        self._sections = sections

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines that fit, and how many more there are of each part that was cut."""
        height = options.height or console.size.height
        inner = options.update(height=None)
        drawn = [console.render_lines(section, inner, pad=False) for section in self._sections]
        gaps = len(drawn) - 1 if sum(map(len, drawn)) + len(drawn) - 1 <= height else 0
        shown = shares([len(lines) for lines in drawn], height - gaps)
        left = height
        for index, (lines, share) in enumerate(zip(drawn, shown, strict=True)):
            if index and gaps and left > 0:
                yield Segment.line()
                left -= 1
            kept = lines if share == len(lines) else [*lines[: share - 1], _more(len(lines) - share + 1)]
            for line in kept[:share]:
                yield from line
                left -= 1
                if left > 0:
                    yield Segment.line()


def shares(lengths: Sequence[int], height: int) -> list[int]:
    """Return how many lines each part gets of `height`: the longest gives first, the last when all are equally short.

    No part is cut below its heading as long as another can give; then parts go from the end.
    """
    given = list(lengths)
    while sum(given) > max(0, height):
        longest = max(range(len(given)), key=lambda index: (given[index], index))
        if given[longest] <= _HEAD:
            longest = max(index for index, share in enumerate(given) if share)
        given[longest] -= 1
    return given


def _more(count: int) -> list[Segment]:
    return [Segment(f"… {count} more", Style(dim=True))]
