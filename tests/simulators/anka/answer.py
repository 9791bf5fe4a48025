"""The answer of a command of the simulated `anka`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer:
    """A success: the JSON body, the text without -j, and for `run` the guest's exit code and the message on stderr."""

    body: Any = field(default_factory=dict)
    text: str = ""
    message: str = ""
    guest: tuple[int, str] | None = None
