"""Rendering of log lines as text, for the terminal of a running agent and for `hearth logs`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_RESET: Final = "\x1b[0m"
_DIM: Final = "\x1b[2m"
_BOLD: Final = "\x1b[1m"
_LEVEL_COLOURS: Final = {
    "debug": "\x1b[2m",
    "info": "\x1b[32m",
    "warning": "\x1b[33m",
    "error": "\x1b[31m",
    "critical": "\x1b[31;1m",
}
_DIGEST: Final = re.compile(r"(sha256:[0-9a-f]{12})[0-9a-f]{52}")
_HEAD_KEYS: Final = frozenset({"ts", "level", "event", "exception"})


def render_line(line: Mapping[str, object], *, colour: bool) -> str:
    """Return a parsed log line as text: day and time in UTC, level, event, then `key=value` pairs.

    Values with control characters are quoted and escaped, so that a guest cannot control the reader's terminal.
    """
    time = escape_unprintable(line.get("ts", ""))[5:].replace("T", " ")
    level = escape_unprintable(line.get("level", "info"))
    pairs = " ".join(
        f"{escape_unprintable(key)}={_value(value)}"
        for key, value in line.items()
        if key not in _HEAD_KEYS and value != ""
    )
    head = (
        _paint(time, _DIM, colour=colour),
        _paint(f"{level:<7}", _LEVEL_COLOURS.get(level, ""), colour=colour),
        _paint(escape_unprintable(line.get("event", "")), _BOLD, colour=colour),
    )
    text = " ".join((*head, pairs)).rstrip()
    exception = line.get("exception")
    if exception:
        text += "".join(f"\n    {escape_unprintable(part)}" for part in str(exception).splitlines())
    return text


def render_json_line(line: str, *, colour: bool) -> str:
    """Return one raw line of the log file as text. A line that is not a JSON object is only escaped."""
    try:
        parsed = json.loads(line)
    except ValueError:
        return escape_unprintable(line.rstrip("\n"))
    return render_line(parsed, colour=colour) if isinstance(parsed, dict) else escape_unprintable(line.rstrip("\n"))


def _value(value: object) -> str:
    """Return a value in short form: three decimals, and the first 12 digits of a digest."""
    if isinstance(value, float):
        value = f"{value:.3f}".rstrip("0").rstrip(".")
    elif isinstance(value, str):
        value = _DIGEST.sub(r"\1", value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    quote = not text or not text.isprintable() or any(mark in text for mark in ' ="')
    return json.dumps(text) if quote and isinstance(value, str) else escape_unprintable(text)


def escape_unprintable(value: object) -> str:
    """Return text with control characters escaped.

    Without this, a guest, registry or client could control the reader's terminal.
    """
    text = str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _paint(text: str, code: str, *, colour: bool) -> str:
    return f"{code}{text}{_RESET}" if colour and code else text
