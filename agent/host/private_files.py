"""Private files: what the agent writes is readable by its user only, under any inherited umask.

Logs, evidence and disks of guests can contain secrets of jobs."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOLDER_MODE: Final = 0o700
FILE_MODE: Final = 0o600
_OTHERS: Final = 0o077


@contextmanager
def private_umask() -> Iterator[None]:
    """Create files and folders for this user only, in the whole process, while the context is active."""
    before = os.umask(_OTHERS)
    try:
        yield
    finally:
        os.umask(before)


def make_private(folder: Path) -> list[tuple[Path, OSError]]:
    """Take the permissions of all other users from `folder` and what it contains. Links are not followed.

    Returns the files that this user may not change, with the errors. Blocks: call it before the event loop runs.
    """
    refused: list[tuple[Path, OSError]] = []
    for path in (folder, *folder.rglob("*")):
        try:
            mode = path.lstat().st_mode
            if mode & _OTHERS and not stat.S_ISLNK(mode):
                path.chmod(stat.S_IMODE(mode) & ~_OTHERS)
        except FileNotFoundError:
            continue  # a VM that runs on removed it
        except OSError as error:
            refused.append((path, error))
    return refused
