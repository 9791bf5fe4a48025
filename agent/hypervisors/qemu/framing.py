"""How messages of the guest agent are told apart in its byte stream. Pure.

Source: QEMU's guest agent protocol, `guest-sync-delimited`. Messages are JSON on one line. The byte 0xFF, which JSON in
UTF-8 never holds, says that what came before it is void: half a reply to someone who has hung up.
"""

from __future__ import annotations

import json
from typing import Final

from agent.hypervisors.contract import GuestError

VOID: Final = b"\xff"
MESSAGE_LIMIT_BYTES: Final = 64 << 20
"""Longest line taken from a guest: qemu-ga returns at most 16 MiB of each output stream, in base64."""


class Decoder:
    """Turns the bytes of a guest agent, in whatever pieces they come, into its messages."""

    def __init__(self, limit_bytes: int = MESSAGE_LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._partial = bytearray()

    def feed(self, data: bytes) -> list[dict[str, object]]:
        """Return the messages that `data` completes. What is not a JSON object is noise, and dropped.

        Raises `GuestError` for a line longer than any reply can be.
        """
        # Only the new bytes are searched, so that a long reply in many pieces stays linear.
        *ended, rest = data.split(b"\n")
        messages = []
        for piece in ended:
            self._append(piece)
            if message := _parse(self._partial):
                messages.append(message)
            self._partial.clear()
        self._append(rest)
        return messages

    def _append(self, piece: bytes) -> None:
        _, void, valid = piece.rpartition(VOID)
        if void:
            self._partial.clear()
        self._partial += valid
        if len(self._partial) > self._limit:
            raise GuestError(f"the guest agent sent a line of over {self._limit} bytes")


def _parse(line: bytearray) -> dict[str, object] | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def encode(command: str, arguments: dict[str, object] | None = None) -> bytes:
    """Return a command as the guest agent reads it."""
    message: dict[str, object] = {"execute": command}
    if arguments:
        message["arguments"] = arguments
    return json.dumps(message).encode() + b"\n"
