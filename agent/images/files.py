"""Durable file operations of the store and the OCI layout. All functions block."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from _typeshed import ReadableBuffer


def write_durably(path: Path, content: ReadableBuffer) -> None:
    """Write a file and sync it to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_durably(path: Path, content: ReadableBuffer) -> None:
    """Replace a file's content atomically: readers see the old or the new content, also after a power failure."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        write_durably(temporary, content)
        temporary.rename(path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Sync the entries of a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def pwrite_all(descriptor: int, content: memoryview, offset: int) -> None:
    """Write all of `content` at `offset`."""
    while content:
        written = os.pwrite(descriptor, content, offset)
        content = content[written:]
        offset += written


def pread_into(descriptor: int, into: memoryview, offset: int) -> int:
    """Read into `into` from `offset`, until it is full or the file ends; return the number of bytes."""
    at = 0
    while at < len(into):
        got = os.preadv(descriptor, [into[at:]], offset + at)
        if got == 0:
            break
        at += got
    return at


def allocated_bytes(path: Path) -> int:
    """Return the allocated bytes of the files in a directory. Blocks that clones share count in each clone."""
    total = 0
    with os.scandir(path) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total
