"""Staging directories of pulls: one locked directory per version, kept when a pull is interrupted."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from agent.images.locks import try_lock

if TYPE_CHECKING:
    from pathlib import Path

log = structlog.get_logger()

PARTIAL_KEEP_S: Final = 24 * 3600.0
"""How long an interrupted pull is kept so that it can resume."""
_REMOVED: Final = "removed-"


class Stage:
    """A locked directory to which one image version is pulled."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    def close(self) -> None:
        """Release the lock, so that other processes can pull this version."""
        os.close(self._lock)

    def discard(self) -> None:
        """Remove the directory and its content."""
        shutil.rmtree(self.path, ignore_errors=True)


class StagingArea:
    """The parent directory of all stages, and of directories during their removal. All methods block."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self) -> None:
        """Create the directory."""
        self.path.mkdir(parents=True, exist_ok=True)

    def try_open(self, digest: str) -> Stage | None:
        """Open and lock the stage of a version; None if another process has locked it."""
        path = self.path / digest.removeprefix("sha256:")
        path.mkdir(exist_ok=True)
        try:
            lock = try_lock(path)
        except FileNotFoundError:
            return None
        if lock is None:
            return None
        # Another process may have published and so renamed it between the two calls.
        with suppress(FileNotFoundError):
            if os.fstat(lock).st_ino == path.stat().st_ino:
                return Stage(path, lock)
        os.close(lock)
        return None

    def remove(self, path: Path) -> None:
        """Remove a directory of the same volume: rename it into this area in one step, then delete it."""
        renamed = self.path / f"{_REMOVED}{os.urandom(8).hex()}"
        with suppress(FileNotFoundError):
            path.rename(renamed)
        shutil.rmtree(renamed, ignore_errors=True)

    def sweep(self, *, older_than_s: float = PARTIAL_KEEP_S) -> int:
        """Remove the remains of interrupted pulls and removals, except locked and recent ones. Return their number."""
        return sum(self._sweep(path, older_than_s) for path in sorted(self.path.iterdir()))

    def _sweep(self, path: Path, older_than_s: float) -> bool:
        with suppress(FileNotFoundError):
            is_recent = time.time() - path.stat().st_mtime < older_than_s
            if is_recent and not path.name.startswith(_REMOVED):
                return False
            lock = try_lock(path)
            if lock is None:
                return False
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
            log.info("partial-image-removed", image=path.name)
            return True
        return False
