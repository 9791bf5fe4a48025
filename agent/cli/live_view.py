"""A view on the whole terminal that refreshes until Ctrl-C."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from rich.live import Live

from agent.cli.console import plain
from agent.cli.endpoint import AgentUnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console, RenderableType

REFRESH_S: Final = 1.0


def show_live(console: Console, draw: Callable[[], RenderableType]) -> None:
    """Show what `draw` returns until Ctrl-C. Wait for an agent that becomes unreachable: it may be restarting.

    The first drawing happens before the view takes over the terminal, so that the command fails when no agent runs.
    """
    shown = draw()
    try:
        with Live(shown, console=console, screen=console.is_terminal, auto_refresh=False) as live:
            live.refresh()
            while True:
                time.sleep(REFRESH_S)
                try:
                    live.update(draw(), refresh=True)
                except AgentUnreachableError as error:
                    live.update(plain(f"{error.message}; waiting for it", "yellow"), refresh=True)
    except KeyboardInterrupt:
        return
