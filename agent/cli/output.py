"""Results on stdout and errors on stderr, for people and for programs.

Rich and Typer catch `OSError` and end the process themselves. `guard_stdout` therefore turns the errors of stdout into
`HearthError`s, which these libraries let pass.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from agent.domain.errors import HearthError
from agent.telemetry.log_rendering import escape_unprintable

if TYPE_CHECKING:
    from collections.abc import Iterator

_OUT: Final = 1
_STANDARD: Final = (0, 1, 2)


class OutputError(HearthError):
    """Stdout cannot be written, for example because the disk is full."""

    code = "output-refused"


class ReaderGoneError(HearthError):
    """The process that read our stdout has ended, as `head` does when it has enough lines."""

    code = "reader-gone"


def print_line(text: str) -> None:
    """Print lines of the command's result. Unprintable characters are escaped: the text can quote a guest."""
    print_rendered("\n".join(map(escape_unprintable, text.split("\n"))))


def print_rendered(text: str) -> None:
    """Print a line that is escaped already, and may have colours."""
    sys.stdout.write(f"{text}\n")


def print_json(document: object) -> None:
    """Print a document for programs: indented on a terminal, on one line elsewhere."""
    indent = 2 if sys.stdout.isatty() else None
    print_json_text(json.dumps(document, indent=indent, ensure_ascii=False))


def print_json_text(text: str) -> None:
    """Print JSON with unprintable characters escaped, and outside UTF-8 all characters that are not ASCII."""
    is_utf8 = codecs.lookup(sys.stdout.encoding or "ascii").name == "utf-8"
    if not (text.isprintable() and (is_utf8 or text.isascii())):
        shown = [c == "\n" or (c.isprintable() and (is_utf8 or c.isascii())) for c in text]
        text = "".join(c if ok else json.dumps(c)[1:-1] for c, ok in zip(text, shown, strict=True))
    print_rendered(text)


def print_note(text: str) -> None:
    """Print a note on stderr."""
    sys.stderr.write(f"hearth: {escape_unprintable(text)}\n")


def print_error(error: HearthError) -> None:
    """Print an error and its remedy on stderr."""
    print_note(error.message)
    if error.remedy:
        sys.stderr.write(f"        {escape_unprintable(error.remedy)}\n")


def is_colour_wanted() -> bool:
    """Return whether stdout is a terminal and NO_COLOR is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Log only warnings and errors, and only to stderr, while this process does the agent's work itself."""
    import logging  # noqa: PLC0415 - keeps `hearth --help` quick

    import structlog  # noqa: PLC0415

    from agent.telemetry.log import text_processors  # noqa: PLC0415

    before = structlog.get_config()
    structlog.configure(
        processors=text_processors(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


class _Stdout(io.FileIO):
    """Stdout that raises our errors instead of `OSError`."""

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - bytes, or any object with a buffer
        """Write as `io.FileIO` does. Raises `ReaderGoneError` or `OutputError`."""
        try:
            return super().write(data)
        except BrokenPipeError as error:
            raise ReaderGoneError("the reader of the output has ended") from error
        except OSError as error:
            message = f"the output cannot be written: {error.strerror}"
            raise OutputError(message, remedy="free disk space, or redirect the output elsewhere") from error


def guard_stdout() -> None:
    """Make stdout raise `ReaderGoneError` and `OutputError`, and connect closed standard streams to /dev/null.

    A closed standard stream leaves its descriptor number free. The next file or socket would get that number, and the
    output would be written into it.
    """
    for number in _STANDARD:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open until the process ends
    before = sys.stdout
    unbuffered = isinstance(before, io.TextIOWrapper) and (before.line_buffering or before.write_through)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Stdout(_OUT, "w", closefd=False)),
        encoding=before.encoding if before else "utf-8",
        errors="backslashreplace",  # no text of a guest, and no locale, ends a command in a traceback
        line_buffering=bool(unbuffered),
    )


def discard_output() -> None:
    """Send the output that is still buffered to /dev/null, so that the interpreter's exit does not fail on it."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, _OUT)
    os.close(null)
