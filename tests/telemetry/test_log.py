"""The log file: keys, redaction, rotation, lines of libraries, and close."""

from __future__ import annotations

import io
import json
import logging
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from pydantic import BaseModel, SecretStr

from agent.telemetry import log as hearth_log
from agent.telemetry.log import Logs, configure
from agent.telemetry.log_file import LogFile, Retention, log_path, rotated
from agent.telemetry.log_rendering import render_line

if TYPE_CHECKING:
    from collections.abc import Iterator

CANARY = "c4n4ry-Kx81vTq9"


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


class Credentials(BaseModel):
    username: str
    password: SecretStr


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return log_path(tmp_path)


@pytest.fixture
def logs(path: Path) -> Iterator[Logs]:
    logs = configure(path=path, terminal=None)
    yield logs
    logs.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_line_has_stable_keys_first_and_bound_context(logs: Logs, path: Path) -> None:
    with structlog.contextvars.bound_contextvars(vm="hearth-small-1"):
        structlog.get_logger().info("vm-started", pid=7, path=Path("/x"))
    logs.close()
    (line,) = lines(path)
    assert list(line)[:3] == ["ts", "level", "event"]
    assert line["ts"].endswith("Z")
    assert len(line["ts"]) == len("2026-01-01T00:00:00.000Z")
    assert (line["level"], line["event"], line["vm"], line["pid"], line["path"]) == (
        "info",
        "vm-started",
        "hearth-small-1",
        7,
        "/x",
    )


def test_library_lines_have_the_same_format(logs: Logs, path: Path) -> None:
    logging.getLogger("aiohttp.server").warning("odd request from %s", "127.0.0.1")
    logs.close()
    (line,) = lines(path)
    assert (line["event"], line["level"], line["logger"]) == (
        "odd request from 127.0.0.1",
        "warning",
        "aiohttp.server",
    )


def test_traceback_is_logged_without_secrets(logs: Logs, path: Path) -> None:
    try:
        int(f"GET https://bob:{CANARY}@registry/v2/ with Authorization: Bearer {CANARY}")
    except ValueError:
        structlog.get_logger().exception("pull-failed")
    logs.close()
    (line,) = lines(path)
    assert "Traceback" in line["exception"]
    assert "registry/v2/" in line["exception"]
    assert CANARY not in path.read_text(encoding="utf-8")


def test_long_or_unstorable_value_is_cut_without_secrets(logs: Logs, path: Path) -> None:
    """A guest can answer with megabytes, and with lone surrogates."""
    log = structlog.get_logger()
    log.warning("a", error=RuntimeError("x" * 8_185 + f"Bearer {CANARY}" + "y" * 5_000_000))
    log.warning("b", detail="\ud800")
    logs.close()
    first, second = lines(path)
    assert len(first["error"]) < 17_000
    assert CANARY[-6:] not in first["error"]
    assert second["detail"] == "?"


def test_planted_secrets_do_not_reach_the_file(logs: Logs, path: Path) -> None:
    log = structlog.get_logger()
    log.info("a", value=SecretStr(CANARY))
    log.info("b", headers={"Authorization": f"Bearer {CANARY}", "Accept": "*/*"})
    log.info("c", config=[{"registry": {"password": CANARY}}])
    log.info("d", credentials=Credentials(username="u", password=SecretStr(CANARY)))
    log.info("e", login=Credentials(username="u", password=SecretStr(CANARY)))
    log.info("f", url=f"http://user:{CANARY}@host/path", raw=f"Basic {CANARY}".encode())
    log.info("g", error=RuntimeError(f"bearer {CANARY}"))
    logging.getLogger("lib").error("sent Authorization: Basic %s", CANARY)
    logs.close()
    text = path.read_text(encoding="utf-8")
    assert len(lines(path)) == 8
    assert CANARY not in text
    assert "host/path" in text
    assert "*/*" in text


def test_level_change_affects_existing_loggers(path: Path) -> None:
    logs = configure(path=path, terminal=None, level="warning")
    log = structlog.get_logger()
    log.info("before")
    logs.set_level("debug")
    log.debug("after")
    logs.close()
    assert [line["event"] for line in lines(path)] == ["after"]


def test_log_is_rotated_by_size_within_its_budget(path: Path) -> None:
    logs = configure(path=path, terminal=None, retention=Retention(max_bytes=2000, budget_bytes=6500))
    for number in range(200):
        structlog.get_logger().info("filler", number=number, text="x" * 50)
    logs.close()
    names = sorted(item.name for item in path.parent.iterdir())
    assert names == ["hearth.log", "hearth.log.1", "hearth.log.2"]
    assert all(item.stat().st_size <= 2000 for item in path.parent.iterdir())
    kept = [line["number"] for name in reversed(names) for line in lines(path.with_name(name))]
    assert kept == list(range(kept[0], 200))


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = time.time()

    def __call__(self) -> float:
        return self.now_s


def written(path: Path, clock: Clock, *events: str) -> None:
    """Write lines as an agent of its own would that starts, writes, and ends."""
    retention = Retention(max_age_s=3600, keep_s=3 * 3600)
    file = LogFile(path, retention, lost_lines=str, clock=clock)
    for event in events:
        ts = datetime.fromtimestamp(clock.now_s, UTC).isoformat()
        file.emit(logging.makeLogRecord({"msg": json.dumps({"ts": ts, "event": event})}))
    file.close()


def test_log_is_rotated_by_age_across_restarts(tmp_path: Path) -> None:
    path, clock = tmp_path / "hearth.log", Clock()
    written(path, clock, "a")
    clock.now_s += 3500
    written(path, clock, "b")
    clock.now_s += 101
    written(path, clock, "c")
    assert [line["event"] for line in lines(path)] == ["c"]
    assert [line["event"] for line in lines(path.with_name("hearth.log.1"))] == ["a", "b"]


def test_old_rotated_files_are_deleted(tmp_path: Path) -> None:
    path, clock = tmp_path / "hearth.log", Clock()
    for event in "abc":
        written(path, clock, event)
        clock.now_s += 3600
    for age_h, file in enumerate((path, *rotated(path))):
        os.utime(file, (written_s := clock.now_s - age_h * 3600 - 60, written_s))
    clock.now_s += 7200
    written(path, clock, "d")
    assert [[line["event"] for line in lines(file)] for file in (path, *rotated(path))] == [["d"], ["c"]]


def test_stream_gets_json_and_terminal_gets_text() -> None:
    stream, terminal = io.StringIO(), Terminal()
    for target in (stream, terminal):
        logs = configure(terminal=target)
        structlog.get_logger().warning("vm-failed", vm="hearth-small-1", reason="no answer", bell="\x1b[2J")
        logs.close()
    assert json.loads(stream.getvalue())["vm"] == "hearth-small-1"
    shown = terminal.getvalue()
    assert "vm=hearth-small-1" in shown
    assert 'reason="no answer"' in shown
    assert "\x1b[33mwarning" in shown
    assert "\x1b[2J" not in shown


def test_lines_beyond_the_queue_limit_are_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearth_log, "MAX_QUEUED_LINES", 3)
    logs = configure(path=path, terminal=None)
    logs._listener.stop()
    log = structlog.get_logger()
    for number in range(10):
        log.info("burst", number=number)
    logs._listener.start()
    logs._listener.stop()
    logs._listener.start()
    log.info("calm")
    logs.close()
    events = [(line["event"], line.get("number"), line.get("count")) for line in lines(path)]
    assert events == [("burst", 0, None), ("burst", 1, None), ("burst", 2, None), ("log-lines-lost", None, 7),
                      ("calm", None, None)]  # fmt: skip


def test_unwritable_log_is_reported_once(path: Path, capsys: pytest.CaptureFixture[str], logs: Logs) -> None:
    path.mkdir()
    structlog.get_logger().info("one")
    structlog.get_logger().info("two")
    logs.close()
    errors = capsys.readouterr().err
    assert errors.count("cannot write the log") == 1
    assert str(path) in errors


def test_close_restores_the_logging_of_the_process(path: Path) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    configure(path=path, terminal=None, level="debug").close()
    assert (root.level, root.handlers) == before


def test_rendered_line_shortens_digests_and_numbers() -> None:
    line = {"event": "image-pulled", "image": f"sha256:{'ab' * 32}", "duration_s": 0.7317027090002739, "detail": ""}
    assert render_line(line, colour=False).split()[-2:] == ["image=sha256:abababababab", "duration_s=0.732"]


def test_full_disk_loses_only_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "hearth.log"
    path.symlink_to("/dev/full")
    logs = configure(path=path, terminal=None)
    log = structlog.get_logger()
    for number in range(5):
        log.info("while-full", number=number)
    until_lost(logs, 5)
    path.unlink()
    path.write_text('{"ts": "2026", "event": "cut sh')  # as on a disk that becomes full
    log.info("after")
    log.info("and-on")
    logs.close()
    cut, *lines = path.read_text().splitlines()
    assert cut.endswith("cut sh")
    assert [json.loads(line)["event"] for line in lines] == ["log-lines-lost", "after", "and-on"]
    assert json.loads(lines[0])["count"] == 5
    assert capfd.readouterr().err.count("cannot write the log") == 1


def until_lost(logs: Logs, count: int) -> None:
    """Wait until the writing thread has counted that many lost lines."""
    (file,) = logs._listener.handlers
    deadline_s = time.monotonic() + 10
    while getattr(file, "_lost", 0) < count:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
