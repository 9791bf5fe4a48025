"""Apple's LZ4 framing (`COMPRESSION_LZ4`), which Tart's disk chunks use; it is not the standard LZ4 frame.

A stream is a sequence of blocks, little-endian: `bv41`, u32 decoded size, u32 encoded size, an LZ4 block; or `bv4-`,
u32 size, raw bytes; and `bv4$` at the end. A block may refer up to 64 KiB back into the output before it. Hearth writes
independent blocks that decode to 64 KiB, so that each can be fetched and decoded alone. (developer.apple.com,
"COMPRESSION_LZ4".)
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from agent.images.liblz4 import DICTIONARY_BYTES, BlockCodec

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK_BYTES: Final = 64 << 10
MAX_BLOCK_BYTES: Final = 16 << 20
"""Largest decoded block accepted. Apple's encoder writes 64 KiB blocks; the format itself has no limit."""
WINDOW_BYTES: Final = 1 << 20
"""Output passed to the sink per call: it fits the processor's cache between decoding, hashing and writing."""

_COMPRESSED: Final = b"bv41"
_PLAIN: Final = b"bv4-"
END: Final = b"bv4$"
END_BYTES: Final = len(END)
"""Length of the end mark of a stream."""
_COMPRESSED_HEADER: Final = struct.Struct("<4sII")
_PLAIN_HEADER: Final = struct.Struct("<4sI")
MAX_FRAMED_BYTES: Final = _COMPRESSED_HEADER.size + BLOCK_BYTES + BLOCK_BYTES // 255 + 16
"""Largest frame of a block of `BLOCK_BYTES`: its header, and the bound of LZ4 for incompressible data."""


class FrameError(ValueError):
    """A stream that is not in Apple's LZ4 framing, or whose sizes are wrong."""


class FrameDecoder:
    """Decodes one stream that is fed in pieces, and passes the output to `sink` in windows of about 1 MiB.

    `sink(buffer, start, end)` gets each window in order and must not keep it after it returns. Memory is bounded by the
    window and one block, whatever sizes the stream claims: a block beyond `raw_size` is rejected before it is decoded.
    """

    def __init__(self, raw_size: int, sink: Callable[[bytearray, int, int], None], codec: BlockCodec) -> None:
        self._left = raw_size
        self._sink = sink
        self._codec = codec
        self._buffer = bytearray(DICTIONARY_BYTES + min(WINDOW_BYTES, raw_size))
        self._start = 0  # start of the output that was not passed to the sink yet
        self._at = 0  # position of the next block
        self._rest = bytearray()  # an incomplete block at the end of the last piece
        self._ended = False

    def feed(self, piece: memoryview) -> None:
        """Decode all complete blocks. Raises `FrameError`. `piece` must be writable memory."""
        position = 0
        while self._rest and position < len(piece):
            # Complete the one block that straddles two pieces; the others are decoded in place.
            wanted = _block_bytes(memoryview(self._rest)) - len(self._rest)
            self._rest += piece[position : position + wanted]
            position += wanted
            if len(self._rest) == _block_bytes(memoryview(self._rest)):
                self._block(memoryview(self._rest))
                self._rest = bytearray()
        while position < len(piece):
            end = position + _block_bytes(piece[position : position + _COMPRESSED_HEADER.size])
            if end > len(piece):
                self._rest = bytearray(piece[position:])
                return
            self._block(piece[position:end])
            position = end

    def finish(self) -> None:
        """Pass on the last output. Raises `FrameError` if the stream is incomplete."""
        if not self._ended or self._left:
            raise FrameError(f"the stream ends {self._left} bytes of output too early")
        self._flush()

    def _block(self, block: memoryview) -> None:
        if self._ended:
            raise FrameError("bytes after the end of the stream")
        magic = bytes(block[:4])
        if magic == END:
            self._ended = True
            return
        header = _COMPRESSED_HEADER if magic == _COMPRESSED else _PLAIN_HEADER
        size = int(header.unpack_from(block)[1])
        if size > self._left:
            raise FrameError(f"a block of {size} bytes, but only {self._left} bytes are left")
        self._reserve(size)
        if magic == _PLAIN:
            self._buffer[self._at : self._at + size] = block[header.size :]
        else:
            try:
                self._codec.decode(block[header.size :], memoryview(self._buffer), self._at, size)
            except ValueError as error:
                raise FrameError(str(error)) from None
        self._at += size
        self._left -= size

    def _reserve(self, size: int) -> None:
        if self._at + size <= len(self._buffer):
            return
        self._flush()
        keep = min(self._at, DICTIONARY_BYTES)
        self._buffer[:keep] = self._buffer[self._at - keep : self._at]
        self._start = self._at = keep
        if self._at + size > len(self._buffer):
            self._buffer.extend(bytes(self._at + size - len(self._buffer)))

    def _flush(self) -> None:
        if self._at > self._start:
            self._sink(self._buffer, self._start, self._at)
            self._start = self._at


def _block_bytes(head: memoryview) -> int:
    """Return the length of the block that starts with `head`, or of its header if `head` is shorter than that."""
    magic = bytes(head[:4])
    if len(magic) < 4:
        return 4
    if magic == END:
        return 4
    if magic not in (_COMPRESSED, _PLAIN):
        raise FrameError(f"not Apple's LZ4 framing: a block starts with {magic!r}")
    header = _COMPRESSED_HEADER if magic == _COMPRESSED else _PLAIN_HEADER
    if len(head) < header.size:
        return header.size
    decoded, encoded = header.unpack_from(head)[1], header.unpack_from(head)[-1]
    if not 0 < decoded <= MAX_BLOCK_BYTES or encoded > max_encoded(decoded):
        raise FrameError(f"a block claims {encoded} bytes for {decoded} decoded bytes")
    return header.size + int(encoded)


def max_encoded(raw_size: int) -> int:
    """Return the most bytes one LZ4 block of `raw_size` decoded bytes can take (LZ4_compressBound)."""
    return raw_size + raw_size // 255 + 16


def encode_block(raw: memoryview, out: bytearray, codec: BlockCodec) -> int:
    """Append one independent framed block to `out` and return its framed length. `raw` must be writable memory."""
    start = len(out)
    # A block that does not shrink is stored uncompressed, so the encoder gets at most the length of `raw`.
    out.extend(bytes(_COMPRESSED_HEADER.size + len(raw)))
    with memoryview(out) as view:
        encoded = codec.encode(raw, view[start + _COMPRESSED_HEADER.size :])
    if encoded:
        _COMPRESSED_HEADER.pack_into(out, start, _COMPRESSED, len(raw), encoded)
        end = start + _COMPRESSED_HEADER.size + encoded
    else:
        _PLAIN_HEADER.pack_into(out, start, _PLAIN, len(raw))
        end = start + _PLAIN_HEADER.size + len(raw)
        out[start + _PLAIN_HEADER.size : end] = raw
    del out[end:]
    return end - start


def encode_frame(raw: memoryview, codec: BlockCodec) -> tuple[bytearray, list[int]]:
    """Encode a chunk as independent 64 KiB blocks; return the stream and the framed length of each block."""
    out = bytearray()
    lengths = [encode_block(raw[start : start + BLOCK_BYTES], out, codec) for start in range(0, len(raw), BLOCK_BYTES)]
    out += END
    return out, lengths
