"""The chunk index: the locations of raw chunks in all images of the store, in SQLite, rebuilt from disk if it is lost.

Its results are hints: a chunk read from a location is hashed before it is used.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    from agent.images.manifest import Manifest

log = structlog.get_logger()

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS chunk (raw_digest BLOB NOT NULL, image TEXT NOT NULL, offset INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS chunk_by_digest ON chunk (raw_digest);
CREATE INDEX IF NOT EXISTS chunk_by_image ON chunk (image);
CREATE TABLE IF NOT EXISTS image (digest TEXT PRIMARY KEY);
PRAGMA user_version = 1;
"""
_BUSY_S: Final = 10.0
_BATCH: Final = 500


class ChunkIndex:
    """The index in one file. All methods block, and raise `sqlite3.Error`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def images(self) -> frozenset[str]:
        """Return the digests of the indexed images."""
        with self._open() as database:
            return frozenset(row[0] for row in database.execute("SELECT digest FROM image"))

    def add(self, manifest: Manifest) -> None:
        """Add the chunks of an image that is complete on this host."""
        rows = ((_packed(chunk.raw_digest), manifest.digest, chunk.offset) for chunk in manifest.chunks)
        with self._open() as database:
            database.execute("DELETE FROM chunk WHERE image = ?", (manifest.digest,))
            database.executemany("INSERT INTO chunk VALUES (?, ?, ?)", rows)
            database.execute("INSERT OR REPLACE INTO image VALUES (?)", (manifest.digest,))

    def drop(self, digest: str) -> None:
        """Remove an image from the index."""
        with self._open() as database:
            database.execute("DELETE FROM chunk WHERE image = ?", (digest,))
            database.execute("DELETE FROM image WHERE digest = ?", (digest,))

    def find(self, raw_digests: Collection[str]) -> Iterator[tuple[str, str, int]]:
        """Yield (raw digest, image, offset) for every location of one of the chunks."""
        wanted = list(raw_digests)
        with self._open() as database:
            for start in range(0, len(wanted), _BATCH):
                batch = [_packed(digest) for digest in wanted[start : start + _BATCH]]
                marks = ",".join("?" * len(batch))
                query = f"SELECT raw_digest, image, offset FROM chunk WHERE raw_digest IN ({marks})"
                for raw_digest, image, offset in database.execute(query, batch):
                    yield f"sha256:{raw_digest.hex()}", image, offset

    def rebuild(self, manifests: Iterable[Manifest]) -> None:
        """Replace the index by one made from the manifests of all images."""
        with self._open() as database:
            database.execute("DELETE FROM chunk")
            database.execute("DELETE FROM image")
        for manifest in manifests:
            self.add(manifest)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            database = self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            log.warning("chunk-index-lost", path=str(self._path), error=str(error))
            self._path.unlink()
            database = self._connect()
        try:
            with database:
                yield database
        finally:
            database.close()

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=_BUSY_S)
        try:
            if database.execute("PRAGMA user_version").fetchone()[0] != 1:
                database.executescript(_SCHEMA)
        except BaseException:
            database.close()
            raise
        return database


def _packed(digest: str) -> bytes:
    return bytes.fromhex(digest.removeprefix("sha256:"))
