"""Signal dispositions and the signal mask that child processes start with.

A child inherits ignored signals and the signal mask through exec(2). `nohup`, background jobs of shells and some CI
runners ignore SIGHUP, SIGINT or SIGQUIT; a command that inherits this cannot be stopped by these signals.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType

_RESTORED_BY_SUBPROCESS: Final = frozenset(
    getattr(signal, name) for name in ("SIGPIPE", "SIGXFZ", "SIGXFSZ") if hasattr(signal, name)
)
"""Signals that Python ignores in itself. `subprocess` restores them in each child (`restore_signals`)."""
_HARMLESS_BY_DEFAULT: Final = frozenset({signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH})
"""Signals whose default action does not end or stop a process."""


def reset_inherited_signals() -> None:
    """Let child processes start with default signal dispositions and an empty signal mask.

    Call it once, in the main thread, before other threads start, because threads inherit the mask of their creator. It
    costs nothing for each child. A wrapper program costs an exec, and `preexec_fn` is unsafe in a process with threads.

    An ignored signal gets a handler that does nothing: this process still survives the signal, and exec(2) resets a
    caught signal, but not an ignored one, to its default. Blocked signals are unblocked, so that a blocked SIGTERM can
    stop this process. An ignored SIGCHLD is reset, because the kernel would then discard the exit codes of children.
    """
    for number in signal.valid_signals() - _RESTORED_BY_SUBPROCESS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            continue
        if number in _HARMLESS_BY_DEFAULT:
            signal.signal(number, signal.SIG_DFL)
        else:
            signal.signal(number, _do_nothing)
            signal.siginterrupt(number, False)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    pass
