"""Short texts for durations, times, sizes and names in tables."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

_PARTS: Final = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_SIZES: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def duration(span: timedelta | float) -> str:
    """Return a span, in seconds unless a timedelta, in its two largest units: `42s`, `3m10s`, `2h05m`, `4d01h`.

    A negative span becomes `0s`.
    """
    rest_s = max(0, int(span.total_seconds() if isinstance(span, timedelta) else span))
    for index, (unit, length_s) in enumerate(_PARTS[:-1]):
        if rest_s >= length_s:
            next_unit, next_length_s = _PARTS[index + 1]
            return f"{rest_s // length_s}{unit}{rest_s % length_s // next_length_s:02}{next_unit}"
    return f"{rest_s}s"


def since(at: str, now: datetime) -> str:
    """Return the duration from a time of the API until `now`."""
    return duration(now - datetime.fromisoformat(at))


def until(at: str, now: datetime) -> str:
    """Return the duration from `now` until a time of the API."""
    return duration(datetime.fromisoformat(at) - now)


def size(count: float) -> str:
    """Return bytes with three significant digits: `512 B`, `1.50 GiB`."""
    for unit in _SIZES:
        if count < 1024 or unit == _SIZES[-1]:
            digits = 0 if unit == "B" or count >= 100 else 1 if count >= 10 else 2
            return f"{count:.{digits}f} {unit}"
        count /= 1024
    raise AssertionError("the last unit fits every size")


def short_name(name: str, limit: int = 44) -> str:
    """Return a VM name within `limit` characters. Its end is kept, because the ULID there is unique."""
    if len(name) <= limit:
        return name
    head = max(0, limit - 27)
    return f"{name[:head]}…{name[-(limit - head - 1) :]}"


def short_digest(digest: str | None) -> str:
    """Return the first 12 hexadecimal digits of a digest, or `-` for None."""
    return digest.removeprefix("sha256:")[:12] if digest else "-"
