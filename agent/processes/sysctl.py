"""Kernel values of macOS by name, read without starting a process (sysctlbyname(3))."""

from __future__ import annotations

import ctypes
import os


def text(name: str) -> str:
    """Return a string value. Raises `OSError`, also on systems without sysctlbyname."""
    return _read(name).split(b"\0", 1)[0].decode(errors="replace")


def integer(name: str) -> int:
    """Return an integer value of any width. Raises `OSError`, also on systems without sysctlbyname."""
    return int.from_bytes(_read(name), "little")


def _read(name: str) -> bytes:
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        call = libc.sysctlbyname
    except AttributeError:
        raise FileNotFoundError(f"this system has no sysctl {name}") from None
    key, size = name.encode(), ctypes.c_size_t()
    if call(key, None, ctypes.byref(size), None, ctypes.c_size_t(0)):
        raise _failed(name)
    buffer = ctypes.create_string_buffer(size.value)
    if call(key, buffer, ctypes.byref(size), None, ctypes.c_size_t(0)):
        raise _failed(name)
    return buffer.raw[: size.value]


def _failed(name: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), name)
