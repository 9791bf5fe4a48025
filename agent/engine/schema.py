"""The journal's file: its tables by version, how it is opened, and how an older one is brought forward.

`MIGRATIONS` only ever grows: step n brings version n to n + 1, and a new file takes all steps from nothing. Each step
is one transaction, so an interrupted migration goes on where it stopped. Before the first step of an older file a copy
of it is kept beside it, so that the older agent can be installed again.
"""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING, Final

from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from pathlib import Path

MIGRATIONS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE vms (key TEXT PRIMARY KEY, doc TEXT NOT NULL) STRICT;
    CREATE TABLE leases (key TEXT PRIMARY KEY, doc TEXT NOT NULL) STRICT;
    CREATE UNIQUE INDEX one_lease_per_vm ON leases (json_extract(doc, '$.vm'));
    CREATE TABLE rollouts (key TEXT PRIMARY KEY, doc TEXT NOT NULL) STRICT;
    CREATE TABLE breakers (key TEXT PRIMARY KEY, doc TEXT NOT NULL) STRICT;
    CREATE TABLE resolutions (key TEXT PRIMARY KEY, doc TEXT NOT NULL) STRICT;
    CREATE TABLE assignments (key TEXT PRIMARY KEY, doc TEXT NOT NULL) STRICT;
    CREATE TABLE events (sequence INTEGER PRIMARY KEY AUTOINCREMENT, vm TEXT, lease TEXT, doc TEXT NOT NULL) STRICT;
    CREATE INDEX events_by_vm ON events (vm) WHERE vm IS NOT NULL;
    """,
    """
    CREATE TABLE modes (key TEXT PRIMARY KEY, doc TEXT NOT NULL) STRICT;
    CREATE INDEX events_by_lease ON events (lease) WHERE lease IS NOT NULL;
    """,
)
VERSION: Final = len(MIGRATIONS)


class JournalError(HearthError):
    """The journal cannot be read or written. What was not written has no effect."""

    code = "journal-error"


def connect(path: Path) -> sqlite3.Connection:
    """Open the journal at `path`, made or migrated as needed. Blocks. Raises `JournalError` for a corrupt or newer one.

    The connection is in autocommit: transactions are begun by hand, one per write.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise unreadable(path, error) from error
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        _migrate(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise unreadable(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def version_of(connection: sqlite3.Connection) -> int:
    """Return the version of an open journal; 0 for an empty file."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def unreadable(path: Path, error: Exception) -> JournalError:
    """Return the error for a journal that cannot be used as it is."""
    full = isinstance(error, sqlite3.Error) and error.sqlite_errorcode == sqlite3.SQLITE_FULL
    remedy = "free space on its disk" if full else "see `hearth journal check`, then `hearth journal rebuild`"
    return JournalError(f"{path} cannot be read: {error}", remedy=remedy)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    version = version_of(connection)
    if version > VERSION:
        raise JournalError(
            f"{path} was written by a newer agent (schema {version}, this one knows {VERSION})",
            remedy="install that version again",
        )
    if 0 < version < VERSION:
        _keep_copy(connection, path.with_name(f"{path.name}.v{version}"))
    for number in range(version, VERSION):
        connection.executescript(f"BEGIN; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;")


def _keep_copy(connection: sqlite3.Connection, path: Path) -> None:
    """Copy the open journal to `path`, whole or not at all."""
    aside = path.with_name(f"{path.name}.new")
    aside.unlink(missing_ok=True)
    copy = sqlite3.connect(aside)
    try:
        connection.backup(copy)
    finally:
        copy.close()
    os.replace(aside, path)
