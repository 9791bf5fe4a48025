"""Writing for people and for programs. Colour only on terminals, and never where NO_COLOR is set (rich sees to it)."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from agent.telemetry.log_rendering import escape_unprintable

if TYPE_CHECKING:
    from agent.domain.errors import HearthError


def print_json(document: object) -> None:
    """Print a document for programs: indented on a terminal, on one line elsewhere."""
    indent = 2 if sys.stdout.isatty() else None
    say(json.dumps(document, indent=indent, ensure_ascii=False))


def say(text: str) -> None:
    """Print one line of the command's result."""
    sys.stdout.write(f"{text}\n")


def complain(error: HearthError) -> None:
    """Print an error with its way out on stderr."""
    sys.stderr.write(f"hearth: {escape_unprintable(error.message)}\n")
    if error.remedy:
        sys.stderr.write(f"        {escape_unprintable(error.remedy)}\n")
