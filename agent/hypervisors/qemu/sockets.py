"""Unix sockets with paths of any length.

A socket address holds 104 bytes (108 on Linux), less than a data directory and a VM name can take. The limit is on the
text of the address, so a path that is too long is reached through a temporary symlink to its folder.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

ADDRESS_LIMIT_BYTES: Final = 103
"""Longest path that every supported system accepts: sun_path of macOS without its terminating zero."""
BACKLOG: Final = 16


def listen(path: Path) -> socket.socket:
    """Return a socket that listens at `path`. Replaces a socket left by an ended process. Raises `OSError`."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _address(path) as address:
            server.bind(address)
        server.listen(BACKLOG)
    except OSError:
        server.close()
        raise
    return server


def connect(path: Path) -> socket.socket:
    """Return a non-blocking socket connected to `path`.

    Does not block. Raises `BlockingIOError` if the listener's backlog is full, and another `OSError` if there is no
    listener.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.setblocking(False)
    try:
        with _address(path) as address:
            client.connect(address)
    except OSError:
        client.close()
        raise
    return client


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    if len(os.fsencode(path)) <= ADDRESS_LIMIT_BYTES:
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="hearth-") as short:
        alias = Path(short, "d")
        alias.symlink_to(path.parent)
        yield str(alias / path.name)
