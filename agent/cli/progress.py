"""Progress bars for pulls and pushes: on stderr, because stdout is for the result, and only on a terminal."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from agent.cli.console import PlainConsole

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from agent.images.contract import PullProgress
    from agent.images.push import PushProgress

_PERIOD_S: Final = 0.1


@contextmanager
def push_bar(*, enabled: bool) -> Iterator[Callable[[PushProgress], None]]:
    """Yield a function that shows the reported progress of a push."""
    with _bars(enabled=enabled) as progress:
        task = progress.add_task("pushing", total=None)

        def show(report: PushProgress) -> None:
            progress.update(task, total=report.total_bytes, completed=report.done_bytes)

        yield show


@asynccontextmanager
async def pull_bar(reports: Callable[[], tuple[PullProgress, ...]], *, enabled: bool) -> AsyncIterator[None]:
    """Show the progress of the pull that `reports` returns, while the context is open."""
    with _bars(enabled=enabled) as progress:
        task = progress.add_task("pulling", total=None)

        async def refresh() -> None:
            while True:
                for report in reports():
                    blob = report.waiting.partition(": ")[0]
                    description = f"pulling, waiting for {blob}" if blob else "pulling"
                    total = report.total_bytes or None
                    progress.update(task, total=total, completed=report.done_bytes, description=description)
                await asyncio.sleep(_PERIOD_S)

        refresher = asyncio.create_task(refresh())
        try:
            yield
        finally:
            refresher.cancel()
            await asyncio.gather(refresher, return_exceptions=True)


def _bars(*, enabled: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=PlainConsole(stderr=True),
        transient=True,
        disable=not (enabled and sys.stderr.isatty()),
    )
