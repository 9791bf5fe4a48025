"""What a command of the simulated `anka` answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer:
    """A success: the JSON body, the text without -j, and of `run` its exit code and last words."""

    body: Any = field(default_factory=dict)
    text: str = ""
    message: str = ""
    guest: tuple[int, str] | None = None
