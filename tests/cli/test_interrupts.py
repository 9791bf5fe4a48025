"""Deferred signals, and inherited signal dispositions."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from agent.cli.interrupts import SIGNALS, deferred_interrupts, single_interrupt

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager


def test_deferred_signal_is_delivered_and_handlers_restored() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    reached = False
    with deferred_interrupts() as deliver:
        signal.raise_signal(signal.SIGINT)
        reached = True
        with pytest.raises(KeyboardInterrupt):
            deliver()
    assert reached
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_deferred_signal_is_delivered_at_end_of_block() -> None:
    with pytest.raises(KeyboardInterrupt), deferred_interrupts():
        signal.raise_signal(signal.SIGINT)


def test_deferral_without_signal_restores_handlers() -> None:
    with deferred_interrupts() as deliver:
        deliver()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("handle", [deferred_interrupts, lambda: single_interrupt(b"")])
def test_ignored_signal_stays_ignored(handle: Callable[[], AbstractContextManager[object]]) -> None:
    """As under `nohup`: a command must survive the end of its shell."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with handle():
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.raise_signal(signal.SIGHUP)
