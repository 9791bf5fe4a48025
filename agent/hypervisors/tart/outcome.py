"""What became of a `tart run`, read from what it printed: it exits with 0 also when the guest died. Pure.

The texts are Tart's own: Sources/tart/VM.swift and VMStorageHelper.swift.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, auto
from typing import Final

FAILED: Final = 1
"""The code told of a VM that ended by an error which `tart run` did not put into its own exit code."""
BEGIN: Final = "# hearth:"
"""Begins the line written into the log before each run."""
_KEPT: Final = 400


class Ending(StrEnum):
    """How a `tart run` ended, as far as its words tell."""

    QUIET = auto()
    GUEST_FAILED = auto()
    NETWORK_LOST = auto()
    NO_SLOT = auto()
    NOT_SUSPENDED = auto()
    STILL_ALIVE = auto()


_TEXTS: Final = (
    ("The number of VMs exceeds the system limit", Ending.NO_SLOT),
    ("maximum supported number of active virtual machines", Ending.NO_SLOT),
    ("guest has stopped the virtual machine due to error", Ending.GUEST_FAILED),
    ("has been disconnected with error", Ending.NETWORK_LOST),
    ("Failed to suspend the VM", Ending.NOT_SUSPENDED),
    ("Failed to lock auxiliary storage", Ending.STILL_ALIVE),
    ("is already running!", Ending.STILL_ALIVE),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: its kind, the code it deserves (None when nobody knows), and its last words."""

    ending: Ending
    code: int | None
    words: str


def read_outcome(output: str, code: int | None) -> Outcome:
    """Return how the last run in a log ended, given its exit code, or None when that is not known."""
    said = [line.strip() for line in _last_run(output) if line.strip()]
    for line in said:
        for text, ending in _TEXTS:
            if text in line:
                return Outcome(ending, code or FAILED, line[:_KEPT])
    return Outcome(Ending.QUIET, code, " | ".join(said[-3:])[-_KEPT:])


def _last_run(output: str) -> list[str]:
    lines = output.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith(BEGIN)]
    return lines[starts[-1] + 1 :] if starts else lines
