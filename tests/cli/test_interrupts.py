"""Signals that come while something is being started."""

from __future__ import annotations

import signal

import pytest

from agent.cli.interrupts import SIGNALS, deferred_interrupts


def test_a_signal_counts_once_it_is_let_go_and_handlers_are_as_before() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    reached = False
    with deferred_interrupts() as deliver:
        signal.raise_signal(signal.SIGINT)
        reached = True
        with pytest.raises(KeyboardInterrupt):
            deliver()
    assert reached
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_at_the_latest_it_counts_when_the_block_ends() -> None:
    with pytest.raises(KeyboardInterrupt), deferred_interrupts():
        signal.raise_signal(signal.SIGINT)


def test_without_a_signal_nothing_happens() -> None:
    with deferred_interrupts() as deliver:
        deliver()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
