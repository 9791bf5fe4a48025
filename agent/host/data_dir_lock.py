"""The lock on the data directory: one agent at a time. The kernel releases it when its process ends."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, ClassVar

from agent.domain.errors import ErrorOrigin, HearthError
from agent.host.private_files import FILE_MODE, FOLDER_MODE, private_umask

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class AlreadyRunningError(HearthError):
    """Another agent uses this data directory."""

    code = "already-running"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class DataDirectoryError(HearthError):
    """The data directory cannot be created or written."""

    code = "bad-data-directory"


@contextmanager
def lock_data_directory(data_dir: Path) -> Iterator[None]:
    """Hold the lock on the data directory while the context is active. Files are created for this user only.

    Raises `AlreadyRunningError` with the pid of the other agent, and `DataDirectoryError`.
    """
    path = data_dir / "agent.lock"
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    except OSError as error:
        raise DataDirectoryError(
            f"{data_dir} cannot be used: {error.strerror}",
            remedy="check data_dir in the configuration, and the owner of the directory",
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise AlreadyRunningError(
                f"an agent (process {holder}) already uses {data_dir}",
                remedy="stop that agent first, or configure another data_dir for this one",
            ) from None
        with suppress(OSError):  # on a full disk the pid cannot be written; the lock is held nevertheless
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        with private_umask():
            yield
    finally:
        os.close(descriptor)
