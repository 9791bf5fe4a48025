"""LZ4 block codecs: a C library that runs without the interpreter's lock, or the `lz4` package as a fallback.

The calls of the `lz4` package hold the interpreter's lock, so threads do not run in parallel and the event loop stalls.
Its extension module usually exports the C library that it contains. Called through ctypes, that library needs no
further installation and releases the lock. The order of preference: that library, the system's liblz4, macOS's
libcompression, the calls of the package.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from contextlib import suppress
from typing import Final, Protocol

import lz4.block  # type: ignore[import-untyped]

DICTIONARY_BYTES: Final = 64 << 10
"""How far a block may refer back into the output before it."""

_LIBCOMPRESSION: Final = "/usr/lib/libcompression.dylib"
_COMPRESSION_LZ4_RAW: Final = 0x101  # compression.h


class BlockCodec(Protocol):
    """Decodes and encodes single LZ4 blocks between writable buffers."""

    def decode(self, source: memoryview, window: memoryview, at: int, size: int) -> None:
        """Decode `source` into `window[at:at + size]`; the bytes before `at` are its dictionary.

        Raises ValueError if `source` is not a block of exactly that decoded size.
        """

    def encode(self, source: memoryview, target: memoryview) -> int:
        """Encode `source` as one independent block and return its length; 0 if it does not fit into `target`."""


class NativeCodec:
    """The C library, called with the interpreter's lock released."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._decode = library.LZ4_decompress_safe_usingDict
        self._decode.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_int,
        ]
        self._decode.restype = ctypes.c_int
        self._encode = library.LZ4_compress_default
        self._encode.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
        self._encode.restype = ctypes.c_int

    def decode(self, source: memoryview, window: memoryview, at: int, size: int) -> None:
        """See `BlockCodec.decode`."""
        if at + size > len(window):
            raise ValueError("a block larger than its window")
        base = _address(window)
        dictionary = min(at, DICTIONARY_BYTES)
        got = self._decode(_address(source), base + at, len(source), size, base + at - dictionary, dictionary)
        if got != size:
            raise ValueError(f"a block of {len(source)} bytes does not decode to {size} bytes")

    def encode(self, source: memoryview, target: memoryview) -> int:
        """See `BlockCodec.encode`."""
        return int(self._encode(_address(source), _address(target), len(source), len(target)))


class PackageCodec:
    """The calls of the `lz4` package. They hold the interpreter's lock and copy data."""

    def decode(self, source: memoryview, window: memoryview, at: int, size: int) -> None:
        """See `BlockCodec.decode`."""
        dictionary = bytes(window[max(0, at - DICTIONARY_BYTES) : at])
        try:
            raw = lz4.block.decompress(source, uncompressed_size=size, dict=dictionary)
        except lz4.block.LZ4BlockError as error:
            raise ValueError(str(error)) from None
        if len(raw) != size:
            raise ValueError(f"a block of {len(source)} bytes decodes to {len(raw)}, not {size} bytes")
        window[at : at + size] = raw

    def encode(self, source: memoryview, target: memoryview) -> int:
        """See `BlockCodec.encode`."""
        encoded = lz4.block.compress(source, store_size=False)
        if len(encoded) > len(target):
            return 0
        target[: len(encoded)] = encoded
        return len(encoded)


class LibcompressionCodec:
    """macOS's libcompression, called with the interpreter's lock released.

    It does not support a dictionary: `fallback` decodes blocks that refer back into earlier output.
    (developer.apple.com, "Compression": COMPRESSION_LZ4_RAW.)
    """

    def __init__(self, library: ctypes.CDLL, fallback: BlockCodec) -> None:
        self._fallback = fallback
        self._decode = library.compression_decode_buffer
        self._encode = library.compression_encode_buffer
        for call in (self._decode, self._encode):
            call.argtypes = [
                ctypes.c_void_p,
                ctypes.c_size_t,
                ctypes.c_void_p,
                ctypes.c_size_t,
                ctypes.c_void_p,
                ctypes.c_int,
            ]
            call.restype = ctypes.c_size_t

    def decode(self, source: memoryview, window: memoryview, at: int, size: int) -> None:
        """See `BlockCodec.decode`."""
        if at + size > len(window):
            raise ValueError("a block larger than its window")
        # One byte more than needed, if the window has it: otherwise a block that is too long goes unnoticed.
        capacity = min(size + 1, len(window) - at)
        got = self._decode(_address(window) + at, capacity, _address(source), len(source), None, _COMPRESSION_LZ4_RAW)
        if got != size:
            self._fallback.decode(source, window, at, size)

    def encode(self, source: memoryview, target: memoryview) -> int:
        """See `BlockCodec.encode`."""
        to, took = _address(target), _address(source)
        return int(self._encode(to, len(target), took, len(source), None, _COMPRESSION_LZ4_RAW))


def best_codec() -> BlockCodec:
    """Return the fastest codec that this installation can load."""
    for name in (lz4.block._block.__file__, ctypes.util.find_library("lz4")):
        with suppress(OSError, AttributeError):
            if name:
                return NativeCodec(ctypes.CDLL(name))
    with suppress(OSError, AttributeError):
        return LibcompressionCodec(ctypes.CDLL(_LIBCOMPRESSION), PackageCodec())
    return PackageCodec()


def _address(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
