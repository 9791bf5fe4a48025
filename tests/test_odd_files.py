"""Odd things in the place of a file that people write: each is one named error, and the agent runs on."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from agent.api.auth import TokenFileError, load_tokens
from agent.config import ConfigError, load_assignment, load_config, parse_assignment
from agent.config.read_file import MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DEEP = 100_000


def write(content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda path: path.write_bytes(data)


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)  # relative: the address of a socket is short


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "deep arrays": (write("x = " + "[" * DEEP), "deep|valid TOML"),
    "deep tables": (write("x = " + "{a = " * DEEP), "deep|valid TOML"),
    "dotted keys": (write(".".join("a" * 20_000) + " = 1"), "deep|unknown key"),
    "long number": (write("x = " + "9" * 5000), "valid TOML"),
    "long number in a known key": (write('[pools.a]\nimage = "r:1"\nwarm = ' + "9" * 5000), "valid TOML"),
    "large file": (write("#" * (MAX_BYTES + 1)), "larger than 1 MiB"),
    "fifo": (os.mkfifo, "FIFO"),
    "folder": (os.mkdir, "folder|directory"),
    "socket": (listen, "socket|No such device"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "device"),
    "loop": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "latin-1": (write(b"# \xe4"), "encoding"),
    "nul": (write(b"\0" * 100), "valid TOML"),
}


@pytest.mark.parametrize("load", [load_config, load_assignment])
@pytest.mark.parametrize("name", ODD)
def test_odd_file_is_one_named_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, load: Callable[[Path], object]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hearth.toml"
    make, expected = ODD[name]
    make(path)
    with pytest.raises(ConfigError, match=rf"(?s)hearth\.toml.*({expected})") as caught:
        load(path)
    assert caught.value.remedy
    assert len(str(caught.value)) < 5000


def test_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "hearth.toml"
    path.write_bytes(b'\xef\xbb\xbfdata_dir = "data"\n')
    assert load_config(path).data_dir == tmp_path / "data"


def test_deep_json_of_the_api_is_refused() -> None:
    deep: object = 1
    for _ in range(DEEP):
        deep = [deep]
    with pytest.raises(ConfigError, match="deep"):
        parse_assignment({"pools": deep}, source="the body")


@pytest.mark.parametrize("name", ["fifo", "large file", "folder", "device", "nul"])
def test_odd_token_file_is_a_named_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / "tokens.json"
    ODD[name][0](path)
    with pytest.raises(TokenFileError, match=r"tokens\.json"):
        load_tokens(path)
