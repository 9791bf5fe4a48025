"""Changes of a file that has a path, however the file behind the path is replaced."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from agent.config import file_watch
from agent.config.file_watch import file_stamp, watch_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


@asynccontextmanager
async def watched(path: Path) -> AsyncIterator[asyncio.Queue[str]]:
    """Watch a file; yield a queue with its content after each change."""
    contents: asyncio.Queue[str] = asyncio.Queue()

    async def read() -> None:
        contents.put_nowait(path.read_text() if path.exists() else "(none)")

    watch = asyncio.create_task(watch_file(path, read))
    try:
        await asyncio.sleep(0)
        yield contents
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


def rewrite(folder: Path) -> None:
    (folder / "hearth.toml").write_text("two")


def rename_over(folder: Path) -> None:
    (folder / ".hearth.toml.swp").write_text("two")
    (folder / ".hearth.toml.swp").rename(folder / "hearth.toml")


def swap_config_map(folder: Path) -> None:
    """As Kubernetes does: `hearth.toml` links to `..data/hearth.toml`, and `..data` is replaced."""
    (folder / "..two").mkdir()
    (folder / "..two" / "hearth.toml").write_text("two")
    (folder / "..new").symlink_to("..two")
    (folder / "..new").rename(folder / "..data")


def relink_elsewhere(folder: Path) -> None:
    """The link's target is changed in another folder: the file system sends no notice for this one."""
    (folder.parent / "elsewhere" / "hearth.toml").write_text("two")


def replace_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "hearth.toml").write_text("two")


def swap_checkout(folder: Path) -> None:
    """The folder in the path is a link to a checkout, which is set to another one."""
    other = folder.parent / "release-2"
    other.mkdir()
    (other / "hearth.toml").write_text("two")
    (folder.parent / "link.new").symlink_to(other)
    os.replace(folder.parent / "link.new", folder.parent / "etc")


@pytest.mark.parametrize(
    "change", [rewrite, rename_over, swap_config_map, relink_elsewhere, replace_folder, swap_checkout]
)
async def test_every_replacement_of_a_file_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(file_watch, "CHECK_S", 0.1)
    monkeypatch.setattr(file_watch, "RETRY_S", 0.1)
    folder = tmp_path / "etc"
    if change is swap_checkout:
        (tmp_path / "release-1").mkdir()
        folder.symlink_to("release-1")
    else:
        folder.mkdir()
    if change is swap_config_map:
        (folder / "..one").mkdir()
        (folder / "..one" / "hearth.toml").write_text("one")
        (folder / "..data").symlink_to("..one")
        (folder / "hearth.toml").symlink_to("..data/hearth.toml")
    elif change is relink_elsewhere:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "hearth.toml").write_text("one")
        (folder / "hearth.toml").symlink_to("../elsewhere/hearth.toml")
    else:
        (folder / "hearth.toml").write_text("one")
    async with watched(folder / "hearth.toml") as contents, asyncio.timeout(20):
        change(folder)
        while await contents.get() != "two":
            pass


async def test_other_files_of_the_folder_cause_no_call(tmp_path: Path) -> None:
    (tmp_path / "hearth.toml").write_text("one")
    async with watched(tmp_path / "hearth.toml") as contents, asyncio.timeout(20):
        (tmp_path / "other").write_text("x")
        (tmp_path / "hearth.toml").write_text("two")
        assert await contents.get() == "two"
        assert contents.empty()


def test_stamp_of_a_missing_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    assert file_stamp(tmp_path / "link") is None
