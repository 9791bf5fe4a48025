"""Writers of single chunks: decode, hash and write to the disk. All methods block."""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from agent.images.disk_files import data_runs, make_hole
from agent.images.files import pread_into, pwrite_all
from agent.images.lz4frame import END, FrameDecoder, FrameError
from agent.images.plan import Local, Remote, Spot, Zeros

if TYPE_CHECKING:
    from pathlib import Path

    from agent.images.liblz4 import BlockCodec
    from agent.images.plan import Fetch, Rebuild

_COPY_BYTES: Final = 1 << 20
_ZEROS: Final = bytes(_COPY_BYTES)


class CorruptChunkError(Exception):
    """The bytes of a chunk do not match the manifest. A retry may succeed."""


class RawWriter:
    """Writes the raw bytes of a chunk at all its offsets, with holes for zeros, and hashes them.

    `base` is the disk from which the written file was cloned, if any. Bytes that the clone has at the same offset are
    not written again, and zeros are punched into its data.
    """

    def __init__(self, fetch: Fetch, descriptor: int, *, base: Path | None = None) -> None:
        self._fetch = fetch
        self._descriptor = descriptor
        self._base = base
        self._raw = hashlib.sha256()
        self._at = 0

    def write(self, buffer: bytearray, start: int, end: int) -> None:
        """Append `buffer[start:end]`."""
        with memoryview(buffer) as view:
            self._raw.update(view[start:end])
            if self._base is not None:
                self._punch(end - start)
            for first, last in data_runs(buffer, start, end):
                for offset in self._fetch.offsets:
                    pwrite_all(self._descriptor, view[first:last], offset + self._at + first - start)
        self._at += end - start

    def write_zeros(self, size: int) -> None:
        """Append `size` zeros, as a hole."""
        for at in range(0, size, _COPY_BYTES):
            self._raw.update(memoryview(_ZEROS)[: size - at])
        if self._base is not None:
            self._punch(size)
        self._at += size

    def skip_cloned(self, spot: Spot, view: memoryview) -> bool:
        """Append bytes read from `spot` without writing them, if the clone has them already. Return whether it does."""
        if self._base != spot.disk or self._fetch.offsets != (spot.offset - self._at,):
            return False
        self._raw.update(view)
        self._at += len(view)
        return True

    def check(self) -> None:
        """Check the digest of the whole chunk. Raises `CorruptChunkError`."""
        if f"sha256:{self._raw.hexdigest()}" != self._fetch.chunk.raw_digest:
            raise CorruptChunkError("its raw bytes do not match the raw digest")

    def _punch(self, size: int) -> None:
        for offset in self._fetch.offsets:
            make_hole(self._descriptor, offset + self._at, size)


class ChunkWriter:
    """Decodes a compressed chunk that is fed in pieces, and writes it.

    The written bytes are not verified before `finish` returns: only then are both digests known to match.
    """

    def __init__(self, fetch: Fetch, writer: RawWriter, codec: BlockCodec) -> None:
        self._fetch = fetch
        self._writer = writer
        self._compressed = hashlib.sha256()
        self._decoder = FrameDecoder(fetch.chunk.raw_size, writer.write, codec)

    def feed(self, piece: memoryview) -> None:
        """Decode the next compressed bytes. Raises `CorruptChunkError` as soon as they are invalid."""
        self._compressed.update(piece)
        try:
            self._decoder.feed(piece)
        except FrameError as error:
            raise CorruptChunkError(str(error)) from None

    def finish(self) -> None:
        """Check both digests. Raises `CorruptChunkError`."""
        if f"sha256:{self._compressed.hexdigest()}" != self._fetch.blob.digest:
            raise CorruptChunkError("its compressed bytes do not match the digest")
        try:
            self._decoder.finish()
        except FrameError as error:
            raise CorruptChunkError(str(error)) from None
        self._writer.check()


class ChunkBuilder:
    """Rebuilds a chunk from local bytes, zeros and fetched blocks, in order."""

    def __init__(self, rebuild: Rebuild, writer: RawWriter, codec: BlockCodec) -> None:
        self._steps = list(reversed(rebuild.steps))
        self._writer = writer
        self._codec = codec
        self._opened = ExitStack()
        self._disks: dict[Path, int] = {}

    def feed(self, piece: memoryview) -> None:
        """Decode the bytes of the next range. Raises `CorruptChunkError`."""
        self._advance()
        step = self._steps.pop()
        assert isinstance(step, Remote)
        decoder = FrameDecoder(step.raw_size, self._writer.write, self._codec)
        try:
            decoder.feed(piece)
            decoder.feed(memoryview(bytearray(END)))
            decoder.finish()
        except FrameError as error:
            raise CorruptChunkError(str(error)) from None

    def finish(self) -> None:
        """Execute the remaining local steps and check the raw digest. Raises `CorruptChunkError`."""
        self._advance()
        self._writer.check()

    def close(self) -> None:
        """Close the disks of other images."""
        self._opened.close()

    def _advance(self) -> None:
        while self._steps and not isinstance(self._steps[-1], Remote):
            step = self._steps.pop()
            if isinstance(step, Zeros):
                self._writer.write_zeros(step.size)
            elif isinstance(step, Local):
                self._copy(step)

    def _copy(self, step: Local) -> None:
        buffer = bytearray(min(_COPY_BYTES, step.size))
        descriptor = self._disk(step.spot.disk)
        for at in range(0, step.size, _COPY_BYTES):
            size = min(_COPY_BYTES, step.size - at)
            spot = Spot(step.spot.disk, step.spot.offset + at)
            with memoryview(buffer) as view:
                if pread_into(descriptor, view[:size], spot.offset) < size:
                    raise CorruptChunkError(f"{spot.disk} is too short")
                if self._writer.skip_cloned(spot, view[:size]):
                    continue
            self._writer.write(buffer, 0, size)

    def _disk(self, path: Path) -> int:
        if path not in self._disks:
            try:
                self._disks[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise CorruptChunkError(f"reading {path} failed: {error.strerror}") from None
            self._opened.callback(os.close, self._disks[path])
        return self._disks[path]
