"""Parsers of the response headers `WWW-Authenticate` (RFC 9110 §11.6.1) and `Retry-After` (RFC 9110 §10.2.3)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER: Final = re.compile(rf'({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))')
_SCHEME: Final = re.compile(rf"({_TOKEN})(?=\s|,|$)(?!\s*=)")
_PRINTABLE: Final = re.compile(r"[\t -~]*")
_BETWEEN: Final = re.compile(r"[\s,]*")
_MAX_BYTES: Final = 16 << 10
_MAX_DATE_CHARACTERS: Final = 100


@dataclass(frozen=True, slots=True)
class Challenge:
    """An authentication scheme that a registry offers. `scheme` and the parameter names are in lower case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse_challenges(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """Return the challenges of all `WWW-Authenticate` headers.

    One header may hold several challenges, and quoted values may hold commas. Parsing of a header stops at the first
    invalid part, and at the first character that is not printable ASCII.
    """
    return tuple(challenge for header in headers for challenge in _parse(_printable(header[:_MAX_BYTES])))


def retry_after_s(value: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds to wait, never negative; None if `value` is missing or neither seconds nor an HTTP date."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text[:_MAX_DATE_CHARACTERS])
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
    except (ValueError, OverflowError):  # the latter for a year or an offset outside what a date can hold
        return None


def _parse(header: str) -> list[Challenge]:
    challenges: list[tuple[str, dict[str, str]]] = []
    position = 0
    while (position := _skip(header, position)) < len(header):
        if challenges and (parameter := _PARAMETER.match(header, position)):
            name, quoted, plain = parameter.groups()
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            challenges[-1][1].setdefault(name.lower(), value)
            position = parameter.end()
        elif scheme := _SCHEME.match(header, position):
            challenges.append((scheme[1].lower(), {}))
            position = scheme.end()
        else:
            break
    return [Challenge(scheme, parameters) for scheme, parameters in challenges]


def _printable(header: str) -> str:
    found = _PRINTABLE.match(header)
    return found[0] if found else ""


def _skip(header: str, position: int) -> int:
    matched = _BETWEEN.match(header, position)
    return matched.end() if matched else position
