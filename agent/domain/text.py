"""Bounds of foreign text: guest output, registry messages, tool errors."""

from __future__ import annotations

from typing import Final

DETAIL_LIMIT_BYTES: Final = 1 << 10
"""How long the reason of a failure, or the detail of an event or of a probe, may be in UTF-8."""
MESSAGE_LIMIT_BYTES: Final = 4 << 10
"""How long the message of an error may be in UTF-8."""
CUT: Final = " [cut]"


def clip(text: str, limit_bytes: int = DETAIL_LIMIT_BYTES) -> str:
    """Return `text` cut to `limit_bytes` of UTF-8, with `CUT` at its end if it is longer.

    Replaces lone surrogates, which neither the journal nor a JSON document of the API can store.
    """
    encoded = text[: limit_bytes + 1].encode("utf-8", "replace")
    if len(encoded) > limit_bytes:
        return encoded[: limit_bytes - len(CUT)].decode("utf-8", "ignore") + CUT
    return encoded.decode()
