"""Resources that run out: the limit is raised, one line is logged, and no remedy destroys a file."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import sqlite3
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.engine.schema import JournalError, connect, unreadable
from agent.processes.resources import Outages, raise_file_limit


@pytest.fixture
def low_limit() -> object:
    """Give this process a soft limit of 256 open files for one test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("low_limit")
def test_file_limit_is_raised() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    raised = raise_file_limit()
    assert raised == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert raised == (65536 if hard == resource.RLIM_INFINITY else min(65536, hard))


async def test_exhausted_files_are_logged_once() -> None:
    loop, outages = asyncio.get_running_loop(), Outages()
    with capture_logs() as logged:
        for _ in range(1000):
            outages.handle(loop, {"message": "accept", "exception": OSError(errno.EMFILE, "Too many open files")})
    assert [line["event"] for line in logged] == ["resource-exhausted"]
    assert "ulimit -n" in logged[0]["remedy"]


@pytest.mark.usefixtures("low_limit")
def test_healthy_journal_is_not_rebuilt_without_open_files(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    connect(path).close()
    held: list[int] = []
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    try:
        with pytest.raises(JournalError) as caught:
            connect(path)
    finally:
        for descriptor in held:
            os.close(descriptor)
    assert "ulimit -n" in str(caught.value)
    assert "rebuild" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.ENFILE, errno.ENOMEM, errno.EACCES])
def test_remedy_of_an_os_error_destroys_nothing(number: int) -> None:
    assert "rebuild" not in str(unreadable(Path("journal.sqlite"), OSError(number, os.strerror(number))))


def test_remedy_of_a_damaged_journal_is_its_rebuild(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_bytes(b"no database" * 500)
    with pytest.raises(JournalError, match="hearth journal rebuild") as caught:
        connect(tmp_path / "journal.sqlite")
    assert isinstance(caught.value.__cause__, sqlite3.Error)
