"""Redaction of secrets in logs: by type, by key, and by pattern.

A secret is not recognised by its value. A `SecretStr` is always masked, and so is the value of a key that names a
credential. In free text, the two common forms of credentials are masked: an Authorization header, and a password in a
URL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from pydantic import SecretBytes, SecretStr

if TYPE_CHECKING:
    from structlog.typing import EventDict, WrappedLogger

MASK: Final = "[redacted]"
VALUE_LIMIT: Final = 16 << 10
"""The longest text in a log line, in characters. A longer one, such as a traceback that quotes a guest, loses its
middle after it was redacted."""

_SECRET_KEY: Final = re.compile(r"authorization|password|passwd|secret|token|cookie|credential|private.?key", re.I)
_HEADER: Final = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{4,}", re.I)
_URL_PASSWORD: Final = re.compile(r"(?<=://)[^\s/@:]*:[^\s/@]*(?=@)")


def redact_text(text: str) -> str:
    """Return `text` without credentials in Authorization headers and URLs."""
    return _URL_PASSWORD.sub(MASK, _HEADER.sub(rf"\1 {MASK}", text))


def _storable(text: str) -> str:
    """Return `text` without its middle if it is too long, and without lone surrogates, which no file can store."""
    text = text.encode("utf-8", "replace").decode()
    half = VALUE_LIMIT // 2
    return text if len(text) <= VALUE_LIMIT else f"{text[:half]} [{len(text) - 2 * half} characters cut] {text[-half:]}"


def redact(value: object, *, key: str = "") -> Any:  # noqa: ANN401 - the result has the same shape
    """Return `value` for JSON with every secret in it masked. `key` is its key in the log line."""
    if isinstance(value, SecretStr | SecretBytes) or (_SECRET_KEY.search(key) and value not in (None, "")):
        return MASK
    if isinstance(value, bool | int | float) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(name): redact(item, key=str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(item) for item in value]
    if isinstance(value, bytes | bytearray):
        return _storable(redact_text(value.decode("utf-8", "replace")))
    return _storable(redact_text(str(value)))


def redact_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Redact one log line: a structlog processor."""
    return {key: redact(value, key=key) for key, value in event.items()}
