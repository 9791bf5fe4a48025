"""A program of 244 bytes for guests: reads 64 random bytes and makes the kernel's generator start anew from them.

A guest that goes on from the saved memory of another draws the same random numbers as that one until its kernel
reseeds. What is written to /dev/urandom is used up to a minute later, and Debian's cloud kernel has no driver for
QEMU's vmgenid device; no tool of busybox makes the two calls that work at once (random(4)). So here they are, in x86-64
machine code: no compiler is needed to build a guest.
"""

from __future__ import annotations

import struct
from typing import Final

_LOAD_ADDRESS: Final = 0x400000
_HEADERS_BYTES: Final = 64 + 56
_SEED_BYTES: Final = 64
_READ_WRITE_EXECUTE: Final = 7

_CODE: Final = bytes.fromhex(
    "31ff 488d3573000000 ba40000000 31c0 0f05"  # read(0, seed, 64)
    "83f840 7542"  # anything but 64 bytes: fail
    "488d3d47000000 be02000000 b802000000 0f05"  # open("/dev/urandom", O_RDWR)
    "85c0 782b 89c7"  # an error: fail
    "be03520840 488d1538000000 b810000000 0f05"  # ioctl(file, RNDADDENTROPY, &pool): mix the seed in, and believe it
    "85c0 7512"
    "be07520000 b810000000 0f05"  # ioctl(file, RNDRESEEDCRNG): draw from it from now on
    "31ff 85c0 7405"
    "bf01000000"  # fail: exit code 1
    "b83c000000 0f05"  # exit
)
_DEVICE: Final = b"/dev/urandom\0".ljust(15, b"\0")
_POOL: Final = struct.pack("<ii", 8 * _SEED_BYTES, _SEED_BYTES)  # struct rand_pool_info; the seed follows in memory


def _program() -> bytes:
    body = _CODE + _DEVICE + _POOL
    size = _HEADERS_BYTES + len(body)
    start = _LOAD_ADDRESS + _HEADERS_BYTES
    identity = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)  # 64 bits, little endian
    header = struct.pack("<16sHHIQQQIHHHHHH", identity, 2, 62, 1, start, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack(
        "<IIQQQQQQ", 1, _READ_WRITE_EXECUTE, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, size, size + _SEED_BYTES, 4096
    )
    return header + segment + body


RESEED: Final = _program()
"""The program, an ELF file."""
