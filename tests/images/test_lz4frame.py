from __future__ import annotations

import ctypes
import struct
import sys
from contextlib import suppress

import lz4.block  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.images.liblz4 import BlockCodec, LibcompressionCodec, NativeCodec, PackageCodec, best_codec
from agent.images.lz4frame import BLOCK_BYTES, MAX_BLOCK_BYTES, WINDOW_BYTES, FrameDecoder, FrameError, encode_frame
from tests.images.tartlike import back_referring_frame


class LikeLibcompression:
    """The two calls of libcompression as in its header, implemented by liblz4 without a dictionary."""

    def __init__(self) -> None:
        library = ctypes.CDLL(lz4.block._block.__file__)
        for call in (library.LZ4_decompress_safe, library.LZ4_compress_default):
            call.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]

        def decode(to: int, space: int, source: int, size: int, _scratch: None, algorithm: int) -> int:
            assert algorithm == 0x101
            return max(0, int(library.LZ4_decompress_safe(source, to, size, space)))

        def encode(to: int, space: int, source: int, size: int, _scratch: None, algorithm: int) -> int:
            assert algorithm == 0x101
            return int(library.LZ4_compress_default(source, to, size, space))

        self.compression_decode_buffer, self.compression_encode_buffer = decode, encode


def apples() -> LibcompressionCodec:
    """Return the codec for macOS, with the real library if it exists."""
    library = ctypes.CDLL("/usr/lib/libcompression.dylib") if sys.platform == "darwin" else LikeLibcompression()
    return LibcompressionCodec(library, PackageCodec())  # type: ignore[arg-type]


CODECS: list[BlockCodec] = [best_codec(), PackageCodec(), apples()]

# Runs and random data in alternation, as on disks.
raws = st.lists(
    st.one_of(
        st.binary(max_size=3000),
        st.tuples(st.binary(min_size=1, max_size=20), st.integers(1, 9000)).map(lambda pair: pair[0] * pair[1]),
        st.integers(1, 200_000).map(bytes),
    ),
    min_size=1,
    max_size=4,
).map(b"".join)


def decode(stream: bytes, size: int, codec: BlockCodec, *, step: int = 1 << 20) -> bytes:
    out = bytearray()
    decoder = FrameDecoder(size, lambda buffer, start, end: out.extend(buffer[start:end]), codec)
    piece = memoryview(bytearray(stream))
    for at in range(0, len(piece), step):
        decoder.feed(piece[at : at + step])
    decoder.finish()
    return bytes(out)


def test_native_codec_is_found() -> None:
    assert isinstance(best_codec(), NativeCodec)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)
@settings(max_examples=60, deadline=None)
@given(raw=raws, step=st.integers(1, 70_000))
def test_encoded_data_decodes_in_pieces_of_any_size(codec: BlockCodec, raw: bytes, step: int) -> None:
    stream, lengths = encode_frame(memoryview(bytearray(raw)), codec)
    assert sum(lengths) + 4 == len(stream)
    assert len(lengths) == -(-len(raw) // BLOCK_BYTES)
    assert decode(bytes(stream), len(raw), codec, step=step) == raw


@settings(max_examples=30, deadline=None)
@given(raw=raws)
def test_encoded_blocks_are_independent(raw: bytes) -> None:
    codec = best_codec()
    stream, lengths = encode_frame(memoryview(bytearray(raw)), codec)
    at = 0
    for number, length in enumerate(lengths):
        expected = raw[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
        assert decode(bytes(stream[at : at + length]) + b"bv4$", len(expected), codec) == expected
        at += length


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)
@settings(max_examples=30, deadline=None)
@given(raw=raws.map(lambda raw: raw * 3), step=st.integers(1, 70_000))
def test_blocks_with_back_references_decode(codec: BlockCodec, raw: bytes, step: int) -> None:
    assert decode(back_referring_frame(raw), len(raw), codec, step=step) == raw


def test_back_references_cross_window_ends() -> None:
    raw = bytes(range(256)) * (4 * WINDOW_BYTES // 256)
    assert decode(back_referring_frame(raw), len(raw), best_codec()) == raw


@settings(max_examples=200, deadline=None)
@given(stream=st.one_of(st.binary(max_size=200), st.binary(max_size=100).map(lambda tail: b"bv41" + tail)))
def test_random_bytes_are_an_error_and_never_a_crash(stream: bytes) -> None:
    with pytest.raises(FrameError):
        decode(stream, 1000, best_codec())


@settings(max_examples=100, deadline=None)
@given(raw=raws, position=st.integers(0, 1 << 20), change=st.integers(1, 255))
def test_changed_byte_never_writes_out_of_bounds(raw: bytes, position: int, change: int) -> None:
    stream, _ = encode_frame(memoryview(bytearray(raw)), best_codec())
    stream[position % len(stream)] ^= change
    with suppress(FrameError):
        assert len(decode(bytes(stream), len(raw), best_codec())) == len(raw)


HUGE = 100 * 10**9


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        (b"", "too early"),
        (b"bv4$", "too early"),
        (b"\x04\x22\x4d\x18" + bytes(20), "not Apple's"),
        (struct.pack("<4sII", b"bv41", HUGE % 2**32, 100) + bytes(100), "claims"),
        (struct.pack("<4sII", b"bv41", MAX_BLOCK_BYTES + 1, 100) + bytes(100), "claims"),
        (struct.pack("<4sII", b"bv41", 1000, 2**32 - 1), "claims"),
        (struct.pack("<4sI", b"bv4-", 2**32 - 1), "claims"),
        (struct.pack("<4sI", b"bv4-", 0), "claims"),
        (struct.pack("<4sI", b"bv4-", 1001) + bytes(1001), "only 1000 bytes are left"),
        (struct.pack("<4sI", b"bv4-", 1000) + bytes(1000), "too early"),
        (struct.pack("<4sI", b"bv4-", 1000) + bytes(1000) + b"bv4$bv4$", "after the end"),
        (struct.pack("<4sII", b"bv41", 1000, 3) + b"\x10a\x00", "does not decode"),
    ],
)
def test_wrong_sizes_are_rejected(stream: bytes, says: str) -> None:
    with pytest.raises(FrameError) as raised:
        decode(stream, 1000, best_codec())
    assert says in str(raised.value)


def test_decoding_stops_at_the_expected_size() -> None:
    zeros = lz4.block.compress(bytes(MAX_BLOCK_BYTES), store_size=False)
    block = struct.pack("<4sII", b"bv41", MAX_BLOCK_BYTES, len(zeros)) + zeros
    written = 0

    def sink(_: bytearray, start: int, end: int) -> None:
        nonlocal written
        written += end - start

    decoder = FrameDecoder(MAX_BLOCK_BYTES * 2, sink, best_codec())
    with pytest.raises(FrameError, match="are left"):
        for _ in range(1000):
            decoder.feed(memoryview(bytearray(block)))
    assert written <= MAX_BLOCK_BYTES * 2
