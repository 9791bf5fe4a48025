"""Small durable file operations that the store and the layout share. All of them block: call them in threads."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from _typeshed import ReadableBuffer


def write_durably(path: Path, content: ReadableBuffer) -> None:
    """Write a new file and wait until it is on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_durably(path: Path, content: ReadableBuffer) -> None:
    """Replace a file's content in one step: readers see the old bytes or the new ones, also after a power cut."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        write_durably(aside, content)
        aside.rename(path)
    except BaseException:
        with suppress(FileNotFoundError):
            aside.unlink()
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Wait until a directory's entries are on the disk."""
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
    """Fill `into` from `offset`; return how much there was."""
    at = 0
    while at < len(into):
        got = os.preadv(descriptor, [into[at:]], offset + at)
        if got == 0:
            break
        at += got
    return at


def allocated_bytes(path: Path) -> int:
    """Return the bytes a directory's files take on the disk. Blocks shared by clones count in each."""
    total = 0
    with os.scandir(path) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total
