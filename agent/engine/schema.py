"""The schema of the journal file: its tables by version, and the migration of older files.

`MIGRATIONS` only ever grows: step n migrates version n to n + 1, and a new file takes all steps. Each step is one
transaction, so an interrupted migration continues where it stopped. Before the first step a copy of an older file is
stored next to it, so that the older agent can be installed again."""

from __future__ import annotations

import errno
import os
import sqlite3
from typing import TYPE_CHECKING, Final

import structlog

from agent.domain.errors import HearthError
from agent.processes.resources import REMEDIES

if TYPE_CHECKING:
    from pathlib import Path

log = structlog.get_logger()

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
    # Renamed fields, events and pool keys; breakers are stored by scope and name.
    r"""
    UPDATE vms SET doc = json_remove(json_set(doc,
        '$.replacement_due', json(CASE json_extract(doc, '$.owed') WHEN 1 THEN 'true' ELSE 'false' END),
        '$.reported_failure', json_extract(doc, '$.told')), '$.owed', '$.told');
    UPDATE rollouts SET doc = json_remove(
        json_set(doc, '$.short_since_s', json_extract(doc, '$.without_since_s')), '$.without_since_s');
    UPDATE assignments SET doc = replace(doc, '\"fan_out\":', '\"use_templates\":');
    CREATE TEMP TABLE breaker_scopes AS SELECT key, CASE
        WHEN key = 'host' THEN 'host'
        WHEN key LIKE 'sha256:%' THEN 'image'
        WHEN key LIKE 'sha256-%' AND key NOT LIKE '%/%' THEN 'template'
        WHEN key LIKE 'hearth-%' AND key NOT LIKE '%/%' AND key NOT LIKE '%:%' THEN 'vm'
        ELSE 'reference' END AS scope FROM breakers;
    UPDATE breakers SET doc = json_set(doc, '$.key', json_object(
            'scope', (SELECT scope FROM breaker_scopes AS s WHERE s.key = breakers.key), 'name', key)),
        key = (SELECT scope FROM breaker_scopes AS s WHERE s.key = breakers.key) || '/' || key;
    DROP TABLE breaker_scopes;
    UPDATE events SET doc = json_set(doc, '$.kind', 'vm-unhealthy-while-leased')
        WHERE json_extract(doc, '$.kind') = 'vm-sick-while-leased';
    UPDATE events SET doc = json_set(doc, '$.kind', 'stray-removed') WHERE json_extract(doc, '$.kind') = 'stray-reaped';
    UPDATE events SET doc = json_set(doc, '$.kind', 'stray-removal-failed')
        WHERE json_extract(doc, '$.kind') = 'stray-reap-failed';
    """,
    "CREATE TABLE clocks (key TEXT PRIMARY KEY, doc TEXT NOT NULL) STRICT;",
)
VERSION: Final = len(MIGRATIONS)
WAL_BYTES: Final = 8 << 20
"""Size of the WAL. Its blocks are allocated in advance: on a full disk, leases and VMs can still be ended. SQLite
truncates a larger WAL to this size when it begins again."""
CHECKPOINT_PAGES: Final = 500
"""Pages of 4 KiB after which SQLite writes the WAL back, so that at least 6 MiB of it remain for a full disk."""


class JournalError(HearthError):
    """The journal cannot be read or written. A change that is not written has no effect."""

    code = "journal-error"


class JournalTimeoutError(JournalError):
    """The journal did not answer in time. Whether it was written is not known."""


def connect(path: Path) -> sqlite3.Connection:
    """Open the journal at `path`; create or migrate it if needed. Blocks. Raises `JournalError` if corrupt or newer.

    The connection is in autocommit mode: each write begins its own transaction.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise unreadable(path, error) from error
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        _check_integrity(connection, path)
        _bring_up_to_date(connection, path)
        reserve_wal(path)
    except sqlite3.Error as error:
        connection.close()
        raise unreadable(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def reserve_wal(path: Path) -> None:
    """Allocate the WAL of an open journal up to `WAL_BYTES`. Blocks. On a full disk, allocate what is free.

    SQLite ignores the zeros after its last frame: their checksum is wrong (https://www.sqlite.org/walformat.html).
    """
    try:
        with open(f"{path}-wal", "r+b", buffering=0) as wal:
            size = wal.seek(0, os.SEEK_END)
            while size < WAL_BYTES:
                size += wal.write(bytes(min(1 << 20, WAL_BYTES - size))) or 0
            os.fsync(wal.fileno())
    except OSError as error:
        log.warning("wal-not-reserved", path=f"{path}-wal", error=str(error))


def inodes_of(path: Path) -> tuple[int, ...]:
    """Return the inodes of the journal and of its WAL; 0 for a file that does not exist."""
    found = []
    for part in ("", "-wal"):
        try:
            found.append(os.stat(f"{path}{part}").st_ino)
        except FileNotFoundError:
            found.append(0)
    return tuple(found)


def version_of(connection: sqlite3.Connection) -> int:
    """Return the schema version of an open journal; 0 for an empty file."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def unreadable(path: Path, error: Exception) -> JournalError:
    """Return the error for a journal that cannot be used."""
    remedy = _remedy(error) or "run `hearth journal check`, then `hearth journal rebuild`"
    return JournalError(f"{path} cannot be read: {error}", remedy=remedy)


_REMEDIES: Final = {
    sqlite3.SQLITE_FULL: REMEDIES[errno.ENOSPC],
    sqlite3.SQLITE_NOMEM: REMEDIES[errno.ENOMEM],
    sqlite3.SQLITE_CANTOPEN: "check its permissions, and the limit of open files (`ulimit -n`)",
    sqlite3.SQLITE_READONLY: "check its permissions",
    sqlite3.SQLITE_PERM: "check its permissions",
    sqlite3.SQLITE_IOERR: "free space on its disk, or check the disk",
    sqlite3.SQLITE_BUSY: "end the other program that uses it",
    sqlite3.SQLITE_LOCKED: "end the other program that uses it",
}
"""Remedies by primary result code of SQLite, for a journal that may be undamaged: it must not be rebuilt."""


def _remedy(error: Exception) -> str | None:
    """Return the remedy for an error that does not show damage; None if the file is damaged."""
    if isinstance(error, OSError):
        return REMEDIES.get(error.errno or 0, "check its permissions")
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else _REMEDIES.get(code & 0xFF)


def _check_integrity(connection: sqlite3.Connection, path: Path) -> None:
    """Raise `JournalError` if a page is damaged or missing: SQLite would serve the readable part."""
    (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise unreadable(path, ValueError(str(found)))


def _bring_up_to_date(connection: sqlite3.Connection, path: Path) -> None:
    version = version_of(connection)
    if version < 0:
        raise unreadable(path, ValueError(f"its schema has the version {version}"))
    if version > VERSION:
        raise JournalError(
            f"{path} was written by a newer agent (schema {version}, this agent supports {VERSION})",
            remedy="install that version again",
        )
    if 0 < version < VERSION:
        _keep_copy(connection, path.with_name(f"{path.name}.v{version}"))
    migrate(connection, version)


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Migrate an open journal from `version` to the current schema. Raises `sqlite3.Error`."""
    for number in range(version, VERSION):
        connection.executescript(f"BEGIN; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;")


def _keep_copy(connection: sqlite3.Connection, path: Path) -> None:
    """Copy the open journal to `path`, completely or not at all."""
    aside = path.with_name(f"{path.name}.new")
    aside.unlink(missing_ok=True)
    copy = sqlite3.connect(aside)
    try:
        connection.backup(copy)
    finally:
        copy.close()
    os.replace(aside, path)
