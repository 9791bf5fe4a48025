"""The reuse index: which data of local images a pull can reuse - a disk to clone, whole chunks, single blocks."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from agent.images.blockindex import BadIndexError, ChunkBlocks, decode_index
from agent.images.chunk_index import ChunkIndex
from agent.images.errors import ImageError
from agent.images.files import replace_durably
from agent.images.lz4frame import BLOCK_BYTES
from agent.images.manifest import parse_manifest
from agent.images.plan import Spot
from agent.images.store import DISK, MANIFEST

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from agent.images.manifest import Manifest
    from agent.images.store import Store

log = structlog.get_logger()

_FOLDER: Final = ".index"
_SEARCHED: Final = 4
"""Number of images searched for blocks. The block index of an 80 GB image has a million entries."""


class ReuseIndex:
    """The indexes over a store, derived from its images. Without them pulls are slower; `rebuild` recreates them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._folder = store.root / _FOLDER

    def prepare(self) -> None:
        """Create the index if it is missing, add images it does not list, and drop images that no longer exist."""
        self._folder.mkdir(parents=True, exist_ok=True)
        present = set(self._store.digests())
        try:
            known = self._chunks.images()
            for digest in known - present:
                self._chunks.drop(digest)
            for manifest in self._manifests(present - known):
                self._chunks.add(manifest)
        except sqlite3.Error as error:
            log.warning("chunk-index-unusable", error=str(error))
        for path in self._folder.glob("*.blocks"):
            if f"sha256:{path.stem}" not in present:
                path.unlink(missing_ok=True)

    def add(self, manifest: Manifest, block_index: bytes | None) -> None:
        """Add an image that has just been pulled."""
        with self._ignore_index_errors():
            self._chunks.add(manifest)
            if block_index is not None:
                replace_durably(self._blocks_path(manifest.digest), block_index)

    def drop(self, digest: str) -> None:
        """Remove an image from the indexes."""
        with self._ignore_index_errors():
            self._chunks.drop(digest)
            self._blocks_path(digest).unlink(missing_ok=True)

    def rebuild(self) -> None:
        """Recreate the chunk index from the manifests in the store."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._chunks.rebuild(self._manifests(self._store.digests()))

    def find_chunks(self, raw_digests: Collection[str]) -> dict[str, Spot]:
        """Return the locations of whole chunks, by raw digest."""
        found: dict[str, Spot] = {}
        with self._ignore_index_errors():
            for raw_digest, image, offset in self._chunks.find(raw_digests):
                if raw_digest not in found and self._store.has(image):
                    found[raw_digest] = Spot(self._disk(image), offset)
        return found

    def find_base(self, manifest: Manifest, wanted: Collection[str]) -> tuple[Path, frozenset[int]] | None:
        """Return the disk that shares most chunks with an image, and the numbers of its chunks at equal offsets."""
        numbers = {(chunk.raw_digest, chunk.offset): number for number, chunk in enumerate(manifest.chunks)}
        shared: dict[str, set[int]] = {}
        with self._ignore_index_errors():
            for raw_digest, image, offset in self._chunks.find(wanted):
                number = numbers.get((raw_digest, offset))
                if number is not None and self._store.has(image):
                    shared.setdefault(image, set()).add(number)
        if not shared:
            return None
        [(image, _)] = Counter({image: len(found) for image, found in shared.items()}).most_common(1)
        return self._disk(image), frozenset(shared[image])

    def find_blocks(self, wanted: set[bytes]) -> dict[bytes, Spot]:
        """Return the locations of single blocks, by block digest, in the most recently used images."""
        found: dict[bytes, Spot] = {}
        for image in self._manifests(self._store.digests()[:_SEARCHED] if wanted else ()):
            disk = self._disk(image.digest)
            for chunk, blocks in zip(image.chunks, self._load(image), strict=False):
                digests = blocks.all_digests() if blocks else []
                for digest in wanted.intersection(digests):
                    if digest not in found:
                        found[digest] = Spot(disk, chunk.offset + digests.index(digest) * BLOCK_BYTES)
        return found

    @property
    def _chunks(self) -> ChunkIndex:
        return ChunkIndex(self._folder / "chunks.sqlite")

    def _load(self, manifest: Manifest) -> Sequence[ChunkBlocks | None]:
        try:
            return decode_index(self._blocks_path(manifest.digest).read_bytes(), manifest)
        except (FileNotFoundError, BadIndexError):
            return ()

    def _manifests(self, digests: Collection[str]) -> Iterator[Manifest]:
        for digest in digests:
            with suppress(FileNotFoundError, ImageError):
                yield parse_manifest((self._store.path(digest) / MANIFEST).read_bytes())

    def _disk(self, digest: str) -> Path:
        return self._store.path(digest) / DISK

    def _blocks_path(self, digest: str) -> Path:
        return self._folder / f"{digest.removeprefix('sha256:')}.blocks"

    def _ignore_index_errors(self) -> suppress:
        """Continue without the index if it fails: it is only an optimisation."""
        return suppress(sqlite3.Error, OSError)
