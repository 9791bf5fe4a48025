"""Files of the agent are private under any inherited umask, and an upgrade repairs those of older agents."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from agent.host.data_dir_lock import lock_data_directory
from agent.host.private_files import make_private

if TYPE_CHECKING:
    from pathlib import Path


def modes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode)
        for path in folder.rglob("*")
        if not path.is_symlink()
    }


def test_files_of_an_older_agent_become_private(tmp_path: Path) -> None:
    data, outside = tmp_path / "data", tmp_path / "outside"
    (data / "evidence" / "vm").mkdir(parents=True)
    for path, mode in ((data / "journal.sqlite", 0o644), (data / "evidence" / "vm" / "log", 0o666), (outside, 0o644)):
        path.touch()
        path.chmod(mode)
    (data / "evidence").chmod(0o755)
    (data / "evidence" / "vm" / "run").write_text("#!/bin/sh\n")
    (data / "evidence" / "vm" / "run").chmod(0o755)
    (data / "link").symlink_to(outside)
    (data / "gone").symlink_to("nowhere")
    assert make_private(data) == []
    assert stat.S_IMODE(data.stat().st_mode) & 0o077 == 0
    assert modes(data) == {
        "journal.sqlite": 0o600, "evidence": 0o700, "evidence/vm": modes(data)["evidence/vm"],
        "evidence/vm/log": 0o600, "evidence/vm/run": 0o700,
    }  # fmt: skip
    assert not modes(data)["evidence/vm"] & 0o077
    assert stat.S_IMODE(outside.stat().st_mode) == 0o644


def test_umask_is_private_while_the_lock_is_held(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with lock_data_directory(tmp_path / "data"):
            (tmp_path / "data" / "file").touch()
            (tmp_path / "data" / "folder").mkdir()
        (tmp_path / "after").touch()
    finally:
        os.umask(before)
    assert modes(tmp_path / "data") == {"agent.lock": 0o600, "file": 0o600, "folder": 0o700}
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "after").stat().st_mode) == 0o666
