"""The journal of a pull: which chunks are verified and in place, so that an interrupted pull goes on and not over.

It lies beside the disk it speaks of. A line is appended after its chunk is written, without waiting for the disk: what
was written before a process died is there after it. Only a restart of the machine can lose it, so the journal names the
boot it was written in; lines of another boot are a claim to check by hashing, not a fact.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME: Final = "journal"
_FORMAT: Final = "hearth-pull-1"


@dataclass(frozen=True, slots=True)
class Recovered:
    """What an earlier try left: the chunks it finished, and whether they must be hashed before they are believed."""

    numbers: frozenset[int] = frozenset()
    trusted: bool = True


def read_journal(directory: Path, digest: str, *, boot: str, chunks: int) -> Recovered:
    """Return what the journal in `directory` knows about a pull of `digest`, an image of so many chunks."""
    try:
        lines = (directory / FILE_NAME).read_text(encoding="ascii", errors="replace").split("\n")
    except FileNotFoundError:
        return Recovered()
    header = lines[0].split(" ")
    if len(header) != 3 or header[:2] != [_FORMAT, digest]:
        return Recovered()
    # What follows the last newline may be half a line.
    numbers = frozenset(int(line) for line in lines[1:-1] if line.isdigit() and int(line) < chunks)
    return Recovered(numbers, trusted=bool(boot) and header[2] == boot)


class Journal:
    """Appends to the journal of one pull."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def begin(cls, directory: Path, digest: str, *, boot: str, done: frozenset[int]) -> Journal:
        """Start the journal of this try, taking over the chunks that an earlier one finished."""
        aside = directory / f"{FILE_NAME}.new"
        lines = [f"{_FORMAT} {digest} {boot}", *(str(number) for number in sorted(done))]
        aside.write_text("\n".join(lines) + "\n", encoding="ascii")
        aside.rename(directory / FILE_NAME)
        return cls(os.open(directory / FILE_NAME, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))

    def finished(self, numbers: tuple[int, ...]) -> None:
        """Note that chunks are verified and in place."""
        os.write(self._descriptor, "".join(f"{number}\n" for number in numbers).encode())

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)
