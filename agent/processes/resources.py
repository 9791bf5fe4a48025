"""Resources of the host that run out: the limit of open files, and the remedy for each error that reports one."""

from __future__ import annotations

import errno
import resource
from typing import TYPE_CHECKING, Any, Final

import structlog

if TYPE_CHECKING:
    import asyncio

log = structlog.get_logger()

WANTED_FILES: Final = 65_536
_REPORT_S: Final = 60.0

REMEDIES: Final = {
    errno.EMFILE: "raise the limit of open files of the process (`ulimit -n 4096`)",
    errno.ENFILE: "close other programs: this host has too many open files",
    errno.ENOMEM: "free memory on this host",
    errno.ENOBUFS: "free memory on this host",
    errno.ENOSPC: "free space and inodes on its disk (`df -h`, `df -i`)",
    errno.EDQUOT: "free space: the disk quota of this user is used up",
}
"""The remedy for every error that means that a resource ran out, and not that a file is damaged or in the way."""


def raise_file_limit() -> int:
    """Raise the soft limit of open files as far as the hard limit allows; return it.

    Service managers and shells start with 256 (macOS) or 1024 (Linux). macOS refuses values above kern.maxfilesperproc
    even if the hard limit is unlimited, so smaller values are tried.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)
    while soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            wanted //= 2
        else:
            return wanted
    return soft


class Outages:
    """Logs one line a minute while a resource is exhausted. asyncio reports every connection that it cannot accept."""

    def __init__(self) -> None:
        self._reported_s: dict[int, float] = {}

    def handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle an error that asyncio reports: pass it to the default handler unless a resource ran out."""
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in REMEDIES:
            loop.default_exception_handler(context)
            return
        now_s = loop.time()
        if now_s - self._reported_s.get(error.errno, -_REPORT_S) >= _REPORT_S:
            self._reported_s[error.errno] = now_s
            log.error("resource-exhausted", error=str(error), remedy=REMEDIES[error.errno])
