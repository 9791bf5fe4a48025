"""The checkpoint of a pull: the numbers of the chunks that are verified and on the disk, so that a pull can resume.

The file is in the staging directory of the disk that it describes. A line is appended after its chunk is written,
without waiting for the disk: the data survives the end of the process. Only a restart of the machine can lose it.
Therefore the file names the boot in which it was written, and chunks of an earlier boot must be hashed again.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME: Final = "journal"
"""Older agents wrote this name too, so their interrupted pulls can resume."""
_NUMBER: Final = re.compile(r"[0-9]{1,9}")
_FORMAT: Final = "hearth-pull-1"


@dataclass(frozen=True, slots=True)
class FinishedChunks:
    """The chunks that an earlier attempt finished. If not `trusted`, they must be hashed before they are used."""

    numbers: frozenset[int] = frozenset()
    trusted: bool = True


def read_checkpoint(directory: Path, digest: str, *, boot: str, chunks: int) -> FinishedChunks:
    """Return the chunks that an earlier pull of `digest` finished. The image has `chunks` chunks."""
    try:
        lines = (directory / FILE_NAME).read_text(encoding="ascii", errors="replace").split("\n")
    except FileNotFoundError:
        return FinishedChunks()
    header = lines[0].split(" ")
    if len(header) != 3 or header[:2] != [_FORMAT, digest]:
        return FinishedChunks()
    # The text after the last newline may be half a line.
    numbers = frozenset(int(line) for line in lines[1:-1] if _NUMBER.fullmatch(line) and int(line) < chunks)
    return FinishedChunks(numbers, trusted=bool(boot) and header[2] == boot)


class PullCheckpoint:
    """Appends finished chunks to the checkpoint file of one pull."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def create(cls, directory: Path, digest: str, *, boot: str, done: frozenset[int]) -> PullCheckpoint:
        """Create the checkpoint file of this attempt, which starts with the chunks that are `done` already."""
        temporary = directory / f"{FILE_NAME}.new"
        lines = [f"{_FORMAT} {digest} {boot}", *(str(number) for number in sorted(done))]
        temporary.write_text("\n".join(lines) + "\n", encoding="ascii")
        temporary.rename(directory / FILE_NAME)
        return cls(os.open(directory / FILE_NAME, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))

    def record(self, numbers: tuple[int, ...]) -> None:
        """Append chunks that are verified and on the disk."""
        os.write(self._descriptor, "".join(f"{number}\n" for number in numbers).encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
