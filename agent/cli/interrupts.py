"""Handling of SIGINT, SIGTERM and SIGHUP by commands that must clean up.

A signal that this process inherited as ignored stays ignored: `nohup hearth exec ... &` survives the end of its shell.
"""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    Handler = Callable[[int, FrameType | None], Any]

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], None]]:
    """Hold back the signals until the yielded function is called or the block ends, then deliver them.

    Use it around the start of a process: an interrupt between the start and the assignment would leave the process
    running.
    """
    pending: list[int] = []
    before = _replace_handlers(lambda number, _: pending.append(number))

    def deliver() -> None:
        while before:
            signal.signal(*before.popitem())
        while pending:
            signal.raise_signal(pending.pop(0))

    try:
        yield deliver
    finally:
        deliver()


@contextmanager
def single_interrupt(message: bytes) -> Iterator[Callable[[], None]]:
    """Raise KeyboardInterrupt for the first signal in the block only, and for none after the yielded call.

    Later signals only print `message` on stderr.
    """
    is_closed = False

    def close() -> None:
        nonlocal is_closed
        is_closed = True

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        if is_closed:
            os.write(2, message)
            return
        close()
        raise KeyboardInterrupt

    before = _replace_handlers(interrupt)
    try:
        yield close
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _replace_handlers(handler: Handler) -> dict[int, Any]:
    """Install the handler for each signal that is not ignored; return the handlers it replaces."""
    caught = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in caught}
