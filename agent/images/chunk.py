"""One chunk's way from compressed bytes to verified bytes on the disk. Runs in threads: hashing, LZ4 and writing."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from agent.images.files import pwrite_all
from agent.images.lz4frame import FrameDecoder, FrameError
from agent.images.sparse import data_runs

if TYPE_CHECKING:
    from agent.images.liblz4 import BlockCodec
    from agent.images.plan import Fetch


class CorruptChunkError(Exception):
    """A chunk's bytes are not what the manifest promised. Worth another try."""


class ChunkWriter:
    """Decodes a chunk that comes in pieces and writes it to its places, leaving holes for zeros.

    What is written counts for nothing until `finish` has returned: only then both digests are known to match.
    """

    def __init__(self, fetch: Fetch, descriptor: int, codec: BlockCodec) -> None:
        self._fetch = fetch
        self._descriptor = descriptor
        self._compressed = hashlib.sha256()
        self._raw = hashlib.sha256()
        self._written = 0
        self._decoder = FrameDecoder(fetch.chunk.raw_size, self._write, codec)

    def feed(self, piece: memoryview) -> None:
        """Take the next compressed bytes. Raises `CorruptChunkError` as soon as they cannot be right."""
        self._compressed.update(piece)
        try:
            self._decoder.feed(piece)
        except FrameError as error:
            raise CorruptChunkError(str(error)) from None

    def finish(self) -> None:
        """Check the whole. Raises `CorruptChunkError`."""
        if f"sha256:{self._compressed.hexdigest()}" != self._fetch.blob.digest:
            raise CorruptChunkError("its compressed bytes have another digest")
        try:
            self._decoder.finish()
        except FrameError as error:
            raise CorruptChunkError(str(error)) from None
        if f"sha256:{self._raw.hexdigest()}" != self._fetch.chunk.raw_digest:
            raise CorruptChunkError("its raw bytes have another digest")

    def _write(self, buffer: bytearray, start: int, end: int) -> None:
        with memoryview(buffer) as view:
            self._raw.update(view[start:end])
            for first, last in data_runs(buffer, start, end):
                for offset in self._fetch.offsets:
                    pwrite_all(self._descriptor, view[first:last], offset + self._written + first - start)
        self._written += end - start
