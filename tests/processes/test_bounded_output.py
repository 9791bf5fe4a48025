"""Bounded output buffers, and tails and truncation of log files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from agent.processes.bounded_output import HeadTailBuffer, last_lines, read_tail, truncate_log

if TYPE_CHECKING:
    from pathlib import Path


@given(st.lists(st.binary(max_size=40)), st.integers(2, 60))
def test_buffer_keeps_head_and_tail_of_any_writes(writes: list[bytes], limit: int) -> None:
    buffer = HeadTailBuffer(limit)
    for data in writes:
        buffer.write(data)
    whole, kept = b"".join(writes), buffer.getvalue()
    assert buffer.truncated == (len(whole) > limit)
    if buffer.truncated:
        half = limit // 2
        assert kept == whole[:half] + whole[len(whole) - (limit - half) :]
    else:
        assert kept == whole


def test_tail_and_last_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert read_tail(path, 10) == b""
    path.write_bytes(b"0123456789abc\nlast\n\n")
    assert read_tail(path, 6) == b"last\n\n"
    assert last_lines(path) == "0123456789abc | last" or last_lines(path) == "last"
    assert read_tail(path, 1000) == path.read_bytes()
    path.write_bytes(b"first\nqemu: warning: never mind\nlast\n")
    assert last_lines(path, lines=2, without=": warning: ") == "first | last"


def test_log_over_its_limit_is_truncated_under_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writer = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(writer, b"a" * 90)
        assert not truncate_log(path, limit_bytes=100)
        os.write(writer, b"b" * 20)
        assert truncate_log(path, limit_bytes=100)
        os.write(writer, b"after")
    finally:
        os.close(writer)
    assert path.read_bytes() == b"after"
    assert (tmp_path / "log.1").read_bytes() == b"a" * 30 + b"b" * 20


def test_truncate_ignores_a_missing_log(tmp_path: Path) -> None:
    assert not truncate_log(tmp_path / "none", limit_bytes=1)
    assert list(tmp_path.iterdir()) == []
