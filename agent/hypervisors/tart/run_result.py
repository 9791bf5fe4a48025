"""How a `tart run` ended, parsed from its output: it exits with 0 even if the guest died. Pure.

The texts are Tart's: Sources/tart/VM.swift and VMStorageHelper.swift.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, auto
from typing import Final

FAILED: Final = 1
"""The exit code reported for a VM that ended by an error although `tart run` exited with 0."""
RUN_MARKER: Final = "# hearth:"
"""The beginning of the line that the driver writes into the log before each run."""
_MESSAGE_LIMIT: Final = 400


class RunEnding(StrEnum):
    """How a `tart run` ended, as far as its output shows."""

    QUIET = auto()
    GUEST_FAILED = auto()
    NETWORK_LOST = auto()
    NO_SLOT = auto()
    NOT_SUSPENDED = auto()
    STILL_RUNNING = auto()


_TEXTS: Final = (
    ("The number of VMs exceeds the system limit", RunEnding.NO_SLOT),
    ("maximum supported number of active virtual machines", RunEnding.NO_SLOT),
    ("guest has stopped the virtual machine due to error", RunEnding.GUEST_FAILED),
    ("has been disconnected with error", RunEnding.NETWORK_LOST),
    ("Failed to suspend the VM", RunEnding.NOT_SUSPENDED),
    ("Failed to lock auxiliary storage", RunEnding.STILL_RUNNING),
    ("is already running!", RunEnding.STILL_RUNNING),
)


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended: its kind, its exit code (None if unknown), and the end of its output."""

    ending: RunEnding
    code: int | None
    message: str


def parse_run_result(output: str, code: int | None) -> RunResult:
    """Return how the last run in a log ended. `code` is its exit code, None if unknown."""
    lines = [line.strip() for line in _lines_of_last_run(output) if line.strip()]
    for line in lines:
        for text, ending in _TEXTS:
            if text in line:
                return RunResult(ending, code or FAILED, line[:_MESSAGE_LIMIT])
    return RunResult(RunEnding.QUIET, code, " | ".join(lines[-3:])[-_MESSAGE_LIMIT:])


def _lines_of_last_run(output: str) -> list[str]:
    lines = output.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith(RUN_MARKER)]
    return lines[starts[-1] + 1 :] if starts else lines
