"""The watchdog in real processes: with a blocked loop, a working loop, and after a stop of the process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from agent.telemetry.event_loop_lag import observe_event_loop_lag
from agent.telemetry.watchdog import EX_SOFTWARE

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
import asyncio, itertools, sys, time
from pathlib import Path
from agent.telemetry.watchdog import Watchdog

beats = 0

async def work():
    global beats
    while True:
        beats += 1
        print(beats, flush=True)
        await asyncio.sleep(0.05)

def read_a_disk_that_hangs():
    time.sleep(60)

async def main():
    with Watchdog(lambda: beats, limit_s=1.0, report=Path(sys.argv[1])):
        working = asyncio.create_task(work(), name="reconciler")
        await asyncio.sleep(1.5)
        if sys.argv[2] == "hang":
            read_a_disk_that_hangs()
        await working

asyncio.run(main())
"""


def start(report: Path, what: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(report), what]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_watchdog_ends_a_stuck_process_with_its_stacks(tmp_path: Path) -> None:
    report = tmp_path / "hearth.log"
    report.write_text('{"event": "before"}\n')
    process = start(report, "hang")
    began_s = time.monotonic()
    assert process.wait(20) == EX_SOFTWARE
    assert time.monotonic() - began_s < 15
    assert process.stdout is not None
    process.stdout.close()
    before, line = (json.loads(text) for text in report.read_text().splitlines())
    assert before["event"] == "before"
    assert (line["event"], line["level"]) == ("loop-stuck", "critical")
    assert "read_a_disk_that_hangs" in line["threads"]["MainThread"]
    assert "in work" in line["tasks"]["reconciler"]


def test_watchdog_tolerates_a_stopped_process(tmp_path: Path) -> None:
    report = tmp_path / "hearth.log"
    with start(report, "work") as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(2.5)  # longer than the limit, by the clock
            os.kill(process.pid, signal.SIGCONT)
            for _ in range(30):
                assert process.stdout.readline()
            assert process.poll() is None
        finally:
            process.kill()
    assert not report.exists()


async def test_blocked_event_loop_is_observed_as_lag() -> None:
    lags: asyncio.Queue[float] = asyncio.Queue()
    measuring = asyncio.create_task(observe_event_loop_lag(lags.put_nowait))
    await asyncio.sleep(0)
    time.sleep(1.3)  # noqa: ASYNC251 - this is the blocking that is measured
    assert 0.2 < await asyncio.wait_for(lags.get(), 5) < 1.0
    measuring.cancel()
