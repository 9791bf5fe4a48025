"""The messages of qemu-ga: how they are encoded, and decoded within bounds whatever the guest sends. Pure.

Source: QEMU's guest agent protocol. Messages are JSON on one line. The byte 0xFF, which JSON in UTF-8 never contains,
invalidates all bytes before it: part of a reply to a client that has disconnected.

The guest is not trusted. A message is bounded in bytes and in values before it is parsed, because parsing blocks the
event loop: 60 MiB of small arrays take 4 s and 1.5 GiB. Every value is read by a function that raises `ValueError`.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, Final

from agent.hypervisors.captured_command import OUTPUT_LIMIT_BYTES, bounded_result
from agent.hypervisors.contract import GuestError

if TYPE_CHECKING:
    from agent.hypervisors.contract import ExecResult

RESET: Final = b"\xff"
LINE_LIMIT_BYTES: Final = 4 << 20
"""Longest accepted message: both output streams of a command in base64, after they are cut, and a margin."""
STRING_LIMIT_BYTES: Final = 4 * (OUTPUT_LIMIT_BYTES // 3 + 1)
"""How much of one string is stored: the base64 of a little more than `OUTPUT_LIMIT_BYTES`. qemu-ga returns up to 16 MiB
of each stream; the rest is dropped as it arrives."""
VALUE_LIMIT: Final = 10_000
"""Most arrays, objects and their members in one message. A guest with 100 network interfaces sends about 2,000."""
_INT64: Final = (-(1 << 63), (1 << 63) - 1)
_EXIT_CODES: Final = (0, (1 << 32) - 1)
"""A byte on POSIX, 32 bits on Windows."""
_SIGNALS: Final = (1, 127)


class Decoder:
    """Decodes the byte stream of a guest agent, in pieces of any size, into messages."""

    def __init__(self, limit_bytes: int = LINE_LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._partial = bytearray()
        self._since_quote = 0  # bytes after the last quotation mark of the line

    def feed(self, data: bytes) -> list[dict[str, object]]:
        """Return the messages that `data` completes. Drops lines that are not a JSON object.

        Raises `GuestError` for a line longer or with more values than any reply can have.
        """
        # Searches only the new bytes, so a long reply in many pieces takes linear time.
        *ended, rest = data.split(b"\n")
        messages = []
        for piece in ended:
            self._append(piece)
            if message := _parse(self._partial):
                messages.append(message)
            self._clear()
        self._append(rest)
        return messages

    def _append(self, piece: bytes) -> None:
        _, reset, valid = piece.rpartition(RESET)
        if reset:
            self._clear()
        first, quote, others = valid.partition(b'"')
        self._partial += first[: max(0, STRING_LIMIT_BYTES - self._since_quote)]
        self._since_quote += len(first)
        if quote:
            self._partial += quote + others
            self._since_quote = len(others) - others.rfind(b'"') - 1
        if len(self._partial) > self._limit:
            raise GuestError(f"the guest agent sent a line of over {self._limit} bytes")

    def _clear(self) -> None:
        self._partial.clear()
        self._since_quote = 0


def _parse(line: bytearray) -> dict[str, object] | None:
    if sum(line.count(mark) for mark in (b"[", b"{", b",")) > VALUE_LIMIT:
        raise GuestError(f"the guest agent sent a message of over {VALUE_LIMIT} values")
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def encode(command: str, arguments: dict[str, object] | None = None) -> bytes:
    """Return a command as the guest agent reads it."""
    message: dict[str, object] = {"execute": command}
    if arguments:
        message["arguments"] = arguments
    return json.dumps(message).encode() + b"\n"


# -- readers of answers: each takes what the guest returned, and raises `ValueError` or `KeyError` if it is wrong


def read_nothing(_answer: object) -> None:
    """Accept any answer."""


def read_time(answer: object) -> int:
    """Return a time in nanoseconds."""
    return _integer(answer, _INT64)


def read_handle(answer: object) -> int:
    """Return the handle of an open file."""
    return _integer(answer, _INT64)


def read_pid(answer: object) -> int:
    """Return the pid of a started command."""
    return _integer(_object(answer)["pid"], _INT64)


def read_file_data(answer: object) -> bytes:
    """Return what was read from a file."""
    return _base64(_object(answer)["buf-b64"])


def read_exit_code(answer: object) -> int | None:
    """Return the exit code of a command, 128 + signal for a killed one, as in a shell; None while it runs."""
    status = _object(answer)
    if not isinstance(status["exited"], bool):
        raise ValueError("`exited` is not a boolean")  # noqa: TRY004 - one error for the caller
    if not status["exited"]:
        return None
    if "signal" in status:
        return 128 + _integer(status["signal"], _SIGNALS)
    return _integer(status["exitcode"], _EXIT_CODES)


def read_exec_result(answer: object) -> ExecResult | None:
    """Return the result of a command, None while it runs."""
    exit_code = read_exit_code(answer)
    if exit_code is None:
        return None
    status = _object(answer)
    stdout, stderr = (_base64(status.get(key, "")) for key in ("out-data", "err-data"))
    is_cut = bool(status.get("out-truncated") or status.get("err-truncated"))
    return bounded_result(exit_code, stdout, stderr, truncated=is_cut)


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{type(value).__name__} instead of an object")  # noqa: TRY004 - one error for the caller
    return value


def _integer(value: object, bounds: tuple[int, int]) -> int:
    low, high = bounds
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{type(value).__name__} instead of an integer from {low} to {high}")
    return value


def _base64(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} instead of a base64 string")  # noqa: TRY004 - one error for the caller
    return base64.b64decode(value[:STRING_LIMIT_BYTES], validate=True)
