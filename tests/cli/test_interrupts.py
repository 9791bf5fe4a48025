"""Signals that come while something is being started."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from agent.cli.interrupts import SIGNALS, held

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Begin with the interpreter's own handlers, whatever stood there."""
    stood = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in stood.items():
        signal.signal(number, handler)


def test_a_signal_counts_once_it_is_let_go_and_handlers_are_as_before() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    reached = False
    with held() as let_go:
        signal.raise_signal(signal.SIGINT)
        reached = True
        with pytest.raises(KeyboardInterrupt):
            let_go()
    assert reached
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_at_the_latest_it_counts_when_the_block_ends() -> None:
    with pytest.raises(KeyboardInterrupt), held():
        signal.raise_signal(signal.SIGINT)


def test_without_a_signal_nothing_happens() -> None:
    with held() as let_go:
        let_go()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
