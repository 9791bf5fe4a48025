"""A view that fits the height of a terminal: it shortens its sections when there is not enough space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.segment import Segment
from rich.style import Style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

_HEAD: Final = 2
"""Lines of a section that are kept as long as possible: a table's heading and its first row."""


class FittedView:
    """Renders sections within the height of the terminal, separated by blank lines when there is space for them."""

    def __init__(self, sections: Sequence[RenderableType]) -> None:
        self._sections = sections

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines that fit, and the count of the omitted lines of each shortened section."""
        height = options.height or console.size.height
        inner = options.update(height=None)
        drawn = [console.render_lines(section, inner, pad=False) for section in self._sections]
        gaps = len(drawn) - 1 if sum(map(len, drawn)) + len(drawn) - 1 <= height else 0
        shown = allocate_lines([len(lines) for lines in drawn], height - gaps)
        left = height
        for index, (lines, share) in enumerate(zip(drawn, shown, strict=True)):
            if index and gaps and left > 0:
                yield Segment.line()
                left -= 1
            kept = lines if share == len(lines) else [*lines[: share - 1], _more_line(len(lines) - share + 1)]
            for line in kept[:share]:
                yield from line
                left -= 1
                if left > 0:
                    yield Segment.line()


def allocate_lines(lengths: Sequence[int], height: int) -> list[int]:
    """Return how many lines each section gets of `height`.

    The longest section loses lines first; among equally long ones, the last. No section loses its heading while another
    one is longer than its heading. After that, sections disappear from the end.
    """
    given = list(lengths)
    while sum(given) > max(0, height):
        longest = max(range(len(given)), key=lambda index: (given[index], index))
        if given[longest] <= _HEAD:
            longest = max(index for index, share in enumerate(given) if share)
        given[longest] -= 1
    return given


def _more_line(count: int) -> list[Segment]:
    return [Segment(f"… {count} more", Style(dim=True))]
