"""Our stdout, whose faults are told like any other error: to a reader that has gone, or on a disk that is full.

Libraries between us and it catch `OSError` and end the process in ways of their own; what they do not know they let
pass.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any, Final

from agent.domain.errors import HearthError

_OUT: Final = 1
_STANDARD: Final = (0, 1, 2)


class OutputError(HearthError):
    """What is said cannot be written where our stdout leads."""

    code = "output-refused"


class ReaderGoneError(HearthError):
    """Whoever read our stdout has gone, as `head` does when it has enough."""

    code = "reader-gone"


class _Out(io.FileIO):
    """Our stdout, with errors that are ours."""

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - bytes, or what holds them
        """Write what can be written at once. Raises `ReaderGoneError` or `OutputError`."""
        try:
            return super().write(data)
        except BrokenPipeError as error:
            raise ReaderGoneError("nobody reads this any more") from error
        except OSError as error:
            message = f"the output cannot be written: {error.strerror}"
            raise OutputError(message, remedy="make room, or send it elsewhere") from error


def guard() -> None:
    """Make our stdout tell its faults as errors of ours. Streams that are closed lead nowhere from here on.

    Else the next file or socket that is opened would be taken for them.
    """
    for number in _STANDARD:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process lives
    before = sys.stdout
    unbuffered = isinstance(before, io.TextIOWrapper) and (before.line_buffering or before.write_through)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Out(_OUT, "w", closefd=False)),
        encoding=before.encoding if before else "utf-8",
        errors=before.errors if before else "replace",
        line_buffering=bool(unbuffered),
    )


def give_up() -> None:
    """Let what is still to be written go nowhere, so that the end of the process finds no fault with it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, _OUT)
    os.close(nowhere)
