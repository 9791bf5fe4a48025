"""Tables in 80 columns, and a live status that survives a restart of the agent."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from agent.cli.tables import image_table, pool_table, rollout_table, status_view, vm_table
from agent.cli.units import duration, short_digest, size
from tests.api.real_engine import COMING, DIGEST, RealEngine, vm
from tests.cli.conftest import Agent, start

HOST = Path(__file__).parents[2] / "docs" / "host" / "ready.json"
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
VM: Any = {
    "name": "hearth-a-pool-with-a-rather-long-name-01jx4c8h2m9v3k5n7p1q0r2s4t",
    "pool": "small",
    "state": "ready",
    "since": "2026-11-23T11:58:30Z",
    "lease": None,
    "failure": None,
}


def shown(renderable: RenderableType, *, width: int = 80, colour: bool = False) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=colour, color_system="standard" if colour else None).print(
        renderable
    )
    return stream.getvalue()


def test_vms_in_every_state_fit_80_columns() -> None:
    leased = {"id": "l", "holder": "a-holder-with-a-long-name", "expires_at": "2026-11-23T12:59:00Z"}
    failed = {
        "cause": "probe-failed",
        "reason": "agent failed 3 times in a row: no answer",
        "at": "2026-11-23T11:00:00Z",
    }
    vms: Any = [VM, {**VM, "state": "leased", "lease": leased}, {**VM, "state": "failed", "failure": failed}]
    text = shown(vm_table(vms, NOW))
    assert max(map(len, text.splitlines())) <= 80
    assert "1m30s" in text
    assert "ready" in text
    assert "leased" in text
    assert text.count("01jx4c8h2m9v3k5n7p1q0r2s4t") == 3
    assert "no answer" in " ".join(text.split())


def test_image_table_shows_pull_progress() -> None:
    progress = {"total_bytes": 4 << 30, "done_bytes": 1 << 30, "fetched_bytes": 1 << 30,
                "rate_bytes_per_s": 50 << 20, "eta_s": 61.0}  # fmt: skip
    image: Any = {"digest": COMING, "state": "pulling", "pools": ["small"], "allocated_bytes": 0, "progress": progress,
             "error": "", "retry_at": None, "references": []}  # fmt: skip
    failed: Any = {**image, "digest": DIGEST, "state": "failed", "progress": None, "error": "401 Unauthorized",
              "retry_at": "2026-11-23T12:00:30Z"}  # fmt: skip
    text = shown(image_table([image, failed], NOW))
    assert "25% 50.0 MiB/s 1m01s left" in text
    assert "401 Unauthorized, retry in 30s" in text
    assert max(map(len, text.splitlines())) <= 80


def test_pool_table_shows_both_versions_of_rollout() -> None:
    pool: Any = {"name": "small", "ready": 1, "warm": 2, "leased": 0, "starting": 1, "waiting": 3, "standby": 1,
            "error": "", "rollout": {"phase": "canary", "serving": DIGEST, "target": COMING, "reason": ""}}  # fmt: skip
    text = shown(pool_table([pool]))
    assert "STANDBY" in text
    without: Any = {**pool, "standby": 0}
    assert "STANDBY" not in shown(pool_table([without]))
    for part in ("1/2", "aaaaaaaaaaaa", "canary bbbbbbbbbbbb"):
        assert part in text


def host(**changes: Any) -> Any:
    """Return the example of a host with two ready VMs, with other values of some keys."""
    document: dict[str, Any] = json.loads(HOST.read_text())
    return {**document, **changes}


def test_status_shows_only_problem_conditions() -> None:
    conditions = [
        {"type": "Ready", "status": "true", "problem": False, "message": "", "since": None},
        {
            "type": "DiskPressure",
            "status": "true",
            "problem": True,
            "message": "free some",
            "since": "2026-11-23T11:00:00Z",
        },
        {"type": "RegistryReachable", "status": "false", "problem": True, "message": "refused", "since": None},
        {"type": "Draining", "status": "false", "problem": False, "message": "", "since": None},
    ]
    text = shown(status_view(host(conditions=conditions), [], NOW))
    assert "! DiskPressure is true for 1h00m: free some" in text
    assert "! RegistryReachable is false: refused" in text
    assert "Draining" not in text
    assert "Ready is" not in text


def test_tables_escape_control_characters() -> None:
    text_with_escapes = "a\x1b[2Jb\x9b31m"
    failed: Any = {
        **VM,
        "state": "failed",
        "failure": {"cause": "exited", "reason": text_with_escapes, "at": "2026-11-23T11:00:00Z"},
    }
    leased: Any = {**VM, "lease": {"id": "l", "holder": text_with_escapes, "expires_at": "2026-11-23T12:59:00Z"}}
    conditions = [{"type": "Ready", "status": "false", "problem": True, "message": text_with_escapes, "since": None}]
    text = shown(status_view(host(conditions=conditions), [failed, leased], NOW))
    assert "\x1b" not in text
    assert "\x9b" not in text
    assert text.count("[2J") == 3


def test_colour_is_used_only_on_terminals() -> None:
    assert "\x1b[" in shown(vm_table([VM], NOW), colour=True)
    assert "\x1b[" not in shown(vm_table([VM], NOW))


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0s"), (0, "0s"), (59.9, "59s"), (60, "1m00s"), (3725, "1h02m"), (90061, "1d01h")]
)
def test_duration_has_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == duration(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (20 << 20, "20.0 MiB"), (5 << 50, "5120 TiB")]
)
def test_size_has_three_digits(count: int, text: str) -> None:
    assert size(count) == text


def test_digest_is_shortened() -> None:
    assert (short_digest(DIGEST), short_digest(None)) == ("a" * 12, "-")


def read_until(terminal: int, text: str, limit_s: float = 15.0) -> str:
    """Read from a terminal until `text` appears in the new output."""
    seen, deadline_s = "", time.monotonic() + limit_s
    while text not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline_s - time.monotonic()))
        assert ready, f"{text!r} did not appear in {seen!r}"
        seen += os.read(terminal, 65536).decode("utf-8", "replace")
    return seen


@pytest.mark.slow
def test_watch_survives_agent_restart_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "LINES": "24", "TERM": "xterm-256color"}
    streams = {"stdin": follower, "stdout": follower, "stderr": follower}
    with Agent(tmp_path, RealEngine(vm("hearth-small-1"))):
        process = start("status", "--watch", "--socket", tmp_path / "hearth.sock", env=environment, **streams)
        os.close(follower)
        read_until(leader, "hearth-small-1")
    read_until(leader, "waiting for it")
    with Agent(tmp_path, RealEngine(vm("hearth-small-7"), data="other")):
        read_until(leader, "hearth-small-7")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    os.close(leader)


def test_rollout_table_shows_the_end_of_the_soak() -> None:
    rollout: Any = {"pool": "small", "phase": "canary", "since": "2026-11-23T11:59:48Z", "target": COMING,
               "serving": DIGEST, "previous": None, "soak_until": "2026-11-23T12:00:48Z", "reason": ""}  # fmt: skip
    assert "the canary soaks for 48s more" in " ".join(shown(rollout_table([rollout], NOW, 120)).split())
