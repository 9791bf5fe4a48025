"""Tart's errors: the text on stderr, and the exit code (T1)."""

from __future__ import annotations


class TartError(Exception):
    """A `RuntimeError` of Tart's: its bare message on stderr, exit code 1 (T1)."""

    code = 1
    prefix = ""

    def __str__(self) -> str:
        return f"{self.prefix}{self.args[0]}"


class StateError(TartError):
    """The VM does not exist, or runs, or does not: exit code 2 (T1)."""

    code = 2


class SwiftError(TartError):
    """Any other error, and every error of `run` before the VM starts: `Error: …`, exit code 1 (T1, T2)."""

    prefix = "Error: "


class UsageError(TartError):
    """Bad arguments: `Error: …` and a usage line, exit code 64 (T1)."""

    code = 64
    prefix = "Error: "


def missing(name: str) -> StateError:
    """Return the error for a missing VM."""
    return StateError(f'the specified VM "{name}" does not exist')
