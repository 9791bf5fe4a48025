"""One agent per data directory: an advisory lock that dies with its process, so that it is never stale."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, ClassVar

from agent.domain.errors import ErrorOrigin, HearthError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class AlreadyRunningError(HearthError):
    """Another agent works on this data directory."""

    code = "already-running"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class DataDirectoryError(HearthError):
    """The data directory cannot be made or written to."""

    code = "bad-data-directory"


@contextmanager
def lock_data_directory(data_dir: Path) -> Iterator[None]:
    """Hold the data directory for this process. Raises `AlreadyRunningError` naming the process that holds it."""
    path = data_dir / "agent.lock"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DataDirectoryError(
            f"{data_dir} cannot be used: {error.strerror}", remedy="check data_dir in the configuration, and its owner"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise AlreadyRunningError(
                f"an agent (process {holder}) already works on {data_dir}",
                remedy="stop it first, or give this one a data_dir of its own",
            ) from None
        with suppress(OSError):  # on a full disk nobody is told who holds it; it is held all the same
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
