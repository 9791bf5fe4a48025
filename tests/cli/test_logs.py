"""`hearth logs`: the last lines, filters, and following over rotations by the agent's own log."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest
import structlog

from agent.cli.exit_codes import ExitCode
from agent.cli.log_reader import LogFollower, read_last_lines
from agent.telemetry.log import configure
from agent.telemetry.log_file import Retention, log_path
from tests.cli.conftest import Ended, start

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Hearth = Callable[..., Ended]


def line(number: int, **keys: object) -> str:
    return json.dumps({"ts": "2026-01-23T01:02:03.004Z", "level": "info", "event": f"e{number}", **keys})


def numbers(lines: list[str]) -> list[str]:
    return [json.loads(item)["event"] for item in lines]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = log_path(tmp_path)
    path.parent.mkdir()
    return path


def write(path: Path, first: int, last: int, mode: str = "a") -> None:
    with path.open(mode, encoding="utf-8") as file:
        file.writelines(line(number) + "\n" for number in range(first, last))


def rotate(path: Path) -> None:
    for number in range(8, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        if older.exists():
            older.rename(path.with_name(f"{path.name}.{number + 1}"))
    path.rename(path.with_name(f"{path.name}.1"))


def test_last_lines_include_rotated_files(path: Path) -> None:
    for first in (0, 5, 10):
        write(path, first, first + 5)
        if first < 10:
            rotate(path)
    found, follower = read_last_lines(path, 8, lambda _: True)
    follower.close()
    assert numbers(found) == [f"e{number}" for number in range(7, 15)]


def test_follower_reads_all_lines_over_rotations(path: Path) -> None:
    write(path, 0, 3)
    found, follower = read_last_lines(path, 1, lambda _: True)
    assert numbers(found) == ["e2"]
    write(path, 3, 4)
    rotate(path)
    write(path, 4, 6)
    rotate(path)
    write(path, 6, 7)
    assert numbers(list(follower.drain())) == ["e3", "e4", "e5", "e6"]
    assert list(follower.drain()) == []
    write(path, 7, 8)
    assert numbers(list(follower.drain())) == ["e7"]
    follower.close()


def test_follower_waits_for_complete_line(path: Path) -> None:
    whole = line(1)
    path.write_text(whole[:10])
    follower = LogFollower(path)
    assert list(follower.drain()) == []
    with path.open("a") as file:
        file.write(whole[10:] + "\n")
    assert list(follower.drain()) == [whole]
    follower.close()


def test_follower_continues_after_truncation_or_deletion(path: Path) -> None:
    write(path, 0, 50)
    _, follower = read_last_lines(path, 0, lambda _: True)
    write(path, 50, 51, mode="w")
    assert numbers(list(follower.drain())) == ["e50"]
    path.unlink()
    assert list(follower.drain()) == []
    write(path, 51, 52)
    assert numbers(list(follower.drain())) == ["e51"]
    follower.close()


@pytest.mark.parametrize(
    ("arguments", "events"),
    [
        ((), ["e1", "e2", "e3"]),
        (("--vm", "hearth-small-01a"), ["e1"]),
        (("--vm", "01b"), ["e2"]),
        (("--since", "1h"), []),
        (("--pool", "small"), ["e1", "e2"]),
        (("--level", "warning"), ["e2"]),
        (("--pool", "small", "--level", "error"), []),
        (("--lease", "l3"), ["e3"]),
        (("--lines", "1"), ["e3"]),
        (("--lines", "0"), []),
    ],
)
def test_logs_are_filtered(path: Path, hearth: Hearth, arguments: tuple[str, ...], events: list[str]) -> None:
    path.write_text(
        "\n".join(
            (
                line(1, vm="hearth-small-01a", pool="small"),
                line(2, vm="hearth-small-01b", pool="small", level="warning"),
                line(3, vm="hearth-big-01c", pool="big", lease="l3"),
                "",
            )
        )
    )
    ended = hearth("logs", "--file", path, "--json", *arguments)
    assert ended.code == ExitCode.OK
    assert numbers(ended.out.splitlines()) == events


LIFE = (
    line(1, vm="hearth-s-01a", ts="2026-01-01T00:00:01Z"),
    line(2, vm="hearth-s-01b", ts="2026-01-01T00:00:02Z"),
    line(3, vm="hearth-s-01a", lease="01L1", ts="2026-01-01T00:00:03Z"),
    line(4, path="/v1/leases/01L1", ts="2026-01-01T00:00:04Z"),
    line(5, vm="hearth-s-01a", ts="2026-01-01T00:00:05Z"),
    line(6, vm="hearth-s-01a", lease="01L1", request_id="r6", ts="2026-01-01T00:00:06Z"),
    line(7, path="/v1/leases/01L1/exec", request_id="r6", ts="2026-01-01T00:00:07Z"),
    line(8, lease="01L1", ts="2026-01-01T00:00:08Z"),
    line(9, path="/v1/vms/hearth-s-01a", ts="2026-01-01T00:00:09Z"),
    line(10, lease="01L2", vm="hearth-s-01b", ts="2026-01-01T00:00:10Z"),
)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--vm", "01a"), [1, 3, 4, 5, 6, 7, 8, 9]),
        (("--lease", "1L1"), [3, 4, 5, 6, 7, 8, 9]),
        (("--lease", "1L1", "-n", "2"), [8, 9]),
        (("--vm", "01b"), [2, 10]),
        (("--vm", "01b", "--lease", "1L1"), []),
    ],
)
def test_logs_of_vm_or_lease_include_connected_lines(
    path: Path, hearth: Hearth, arguments: tuple[str, ...], expected: list[int]
) -> None:
    for rotation in (LIFE[:4], LIFE[4:7], LIFE[7:]):
        if path.exists():
            rotate(path)
        path.write_text("".join(f"{item}\n" for item in rotation))
    ended = hearth("logs", "--file", path, "--json", *arguments)
    assert numbers(ended.out.splitlines()) == [f"e{number}" for number in expected]


def test_logs_escape_control_characters(path: Path, hearth: Hearth) -> None:
    path.write_text(line(1, vm="v", detail="a \x1b[2J b", tail="\x07") + "\nnot json \x1b[31m\n")
    ended = hearth("logs", "--file", path)
    assert "\x1b" not in ended.out
    assert "\x07" not in ended.out
    first, second = ended.out.splitlines()
    assert first.startswith("01-23 01:02:03.004Z info    e1 vm=v")
    assert second == "not json \\x1b[31m"


def test_missing_log_error_names_path(tmp_path: Path, hearth: Hearth) -> None:
    config = tmp_path / "hearth.toml"
    config.write_text('data_dir = "data"\n')
    ended = hearth("logs", "--config", config)
    assert ended.code == ExitCode.FAILURE
    assert str(tmp_path / "data" / "logs" / "hearth.log") in ended.err


@pytest.mark.slow
def test_logs_process_follows_rotating_log(tmp_path: Path) -> None:
    path = log_path(tmp_path)
    logs = configure(path=path, terminal=None, retention=Retention(max_bytes=400, budget_bytes=5 * 400))
    log = structlog.get_logger()
    log.info("first")
    config = tmp_path / "hearth.toml"
    config.write_text('data_dir = "."\n')
    try:
        process = start("logs", "-f", "--json", "--config", config)
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "first"
        for number in range(20):
            log.info("next", number=number)
            assert json.loads(process.stdout.readline())["number"] == number
        assert len(os.listdir(path.parent)) == 5
    finally:
        logs.close()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (ExitCode.OK, "")
