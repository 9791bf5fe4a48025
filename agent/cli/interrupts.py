"""Interrupts that wait for a moment in which they can be answered."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends a command from outside."""


@contextmanager
def held() -> Iterator[Callable[[], None]]:
    """Keep these signals waiting until the yielded function is called, or the block ends: they count from then on.

    For what must be known before it can be ended, as a process that is being started.
    """
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in SIGNALS}

    def let_go() -> None:
        while before:
            signal.signal(*before.popitem())
        while came:
            signal.raise_signal(came.pop(0))

    try:
        yield let_go
    finally:
        let_go()
