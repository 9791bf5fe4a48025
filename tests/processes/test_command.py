"""External commands that hang, print without end, ignore SIGTERM or leave children behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from agent.processes import command as command_module
from agent.processes.command import (
    Command,
    CommandError,
    CommandFailedError,
    CommandOutcome,
    CommandReport,
    CommandRunner,
    CommandTimeoutError,
    ProgramMissingError,
)
from agent.processes.process import identify, is_alive
from tests.support.processes import gone, open_fds, pids_in

IGNORES_TERM = "trap '' TERM; echo $$ > pids; while :; do sleep 60 & echo $! >> pids; wait; done"


@pytest.fixture(autouse=True)
def _no_fd_is_leaked() -> object:
    before = open_fds()
    yield
    assert open_fds() == before


def sh(script: str, *, cwd: Path | None = None, timeout_s: float = 20) -> Command:
    return Command(("/bin/sh", "-c", script), timeout_s=timeout_s, cwd=cwd)


def read_if_exists(path: Path) -> str:
    return path.read_text() if path.exists() else ""


async def test_result_has_streams_and_exit_code() -> None:
    result = await CommandRunner().run(sh("echo out; echo err >&2; exit 3"), check=False)
    assert (result.exit_code, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
    assert not result.truncated
    assert 0 < result.duration_s < 10


async def test_failure_message_contains_the_output() -> None:
    with pytest.raises(CommandFailedError, match=r"exit code 4: no such thing") as caught:
        await CommandRunner().run(sh("echo ignored; echo no such thing >&2; exit 4"))
    assert caught.value.result.stdout == b"ignored\n"
    with pytest.raises(CommandFailedError, match="SIGKILL: no output"):
        await CommandRunner().run(sh("kill -9 $$"))


async def test_stdin_is_written_and_closed_or_empty() -> None:
    data = os.urandom(300_000)
    result = await CommandRunner().run(Command(("cat",), timeout_s=20, stdin=data))
    assert result.stdout == data
    assert (await CommandRunner().run(Command(("cat",), timeout_s=20))).stdout == b""


async def test_command_ends_without_reading_its_input() -> None:
    result = await CommandRunner().run(Command(("true",), timeout_s=20, stdin=b"x" * 1_000_000))
    assert result.exit_code == 0


async def test_environment_is_added_to_the_agents() -> None:
    command = Command(("/bin/sh", "-c", 'echo "$ADDED ${PATH:+path}"'), timeout_s=20, env={"ADDED": "yes"})
    assert (await CommandRunner().run(command)).stdout == b"yes path\n"


async def test_missing_program_error_has_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ProgramMissingError, match=r"no-such-tool was not found; install it") as caught:
        await CommandRunner().run(Command(("no-such-tool",), timeout_s=5, remedy="install it"))
    assert caught.value.remedy == "install it"
    script = tmp_path / "tool"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(ProgramMissingError, match="is not executable"):
        await CommandRunner().run(Command((str(script),), timeout_s=5))


async def test_missing_folder_error_does_not_name_the_program(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"its folder .*/gone does not exist") as caught:
        await CommandRunner().run(sh("true", cwd=tmp_path / "gone"))
    assert not isinstance(caught.value, ProgramMissingError)


async def test_invalid_executable_is_a_command_error(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\x00\x01\x02")
    garbage.chmod(0o755)
    with pytest.raises(CommandError, match="cannot be started"):
        await CommandRunner().run(Command((str(garbage),), timeout_s=5))


async def test_hanging_command_gets_sigterm(tmp_path: Path) -> None:
    script = "trap 'touch termed; exit' TERM; echo going to sleep; sleep 60 & wait"
    started = time.monotonic()
    with pytest.raises(CommandTimeoutError, match=r"0\.3 s and was killed; its last output: going to sleep"):
        await CommandRunner().run(sh(script, cwd=tmp_path, timeout_s=0.3))
    assert (tmp_path / "termed").exists()
    assert time.monotonic() - started < command_module.TERM_GRACE_S


async def test_command_ignoring_sigterm_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_module, "TERM_GRACE_S", 0.2)
    run = asyncio.create_task(CommandRunner().run(sh(IGNORES_TERM, cwd=tmp_path, timeout_s=1)))
    processes = await pids_in(tmp_path / "pids", 2)
    assert len(processes) == 2
    with pytest.raises(CommandTimeoutError):
        await run
    await gone(processes)
    assert identify(processes[0].pid) is None, "the command is reaped, no zombie"


async def test_large_output_is_truncated_in_the_middle() -> None:
    script = "echo first; head -c 30000000 /dev/zero; echo last; echo quiet >&2"
    result = await CommandRunner().run(Command(("/bin/sh", "-c", script), timeout_s=60, output_limit_bytes=10_000))
    assert result.truncated
    assert len(result.stdout) == 10_000
    assert result.stdout.startswith(b"first\n")
    assert result.stdout.endswith(b"last\n")
    assert result.stderr == b"quiet\n"


async def test_endless_output_does_not_block_the_event_loop() -> None:
    run = asyncio.create_task(CommandRunner().run(Command(("yes",), timeout_s=0.5)))
    ticks = 0
    while not run.done():
        await asyncio.sleep(0.01)
        ticks += 1
    with pytest.raises(CommandTimeoutError):
        run.result()
    assert ticks > 5


async def test_children_of_an_ended_command_are_killed(tmp_path: Path) -> None:
    started = time.monotonic()
    result = await CommandRunner().run(sh("sleep 60 & echo $! > pids; echo done", cwd=tmp_path))
    assert result.stdout == b"done\n"
    assert time.monotonic() - started < command_module.DRAIN_S
    await gone(await pids_in(tmp_path / "pids", 1))


@pytest.mark.skipif(not shutil.which("setsid"), reason="needs setsid")
async def test_child_outside_the_group_does_not_block_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_module, "DRAIN_S", 0.2)
    started = time.monotonic()
    result = await CommandRunner().run(
        sh("setsid sh -c 'echo $$ > pids; exec sleep 60' & sleep 0.2; echo done", cwd=tmp_path)
    )
    assert result.stdout == b"done\n"
    assert time.monotonic() - started < 5
    (escaped,) = await pids_in(tmp_path / "pids", 1)
    assert is_alive(escaped), "it left the group, so the runner does not kill it"
    os.kill(escaped.pid, 9)


async def test_cancelled_command_is_killed_with_its_group(tmp_path: Path) -> None:
    run = asyncio.create_task(CommandRunner().run(sh(IGNORES_TERM, cwd=tmp_path)))
    processes = await pids_in(tmp_path / "pids", 2)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await gone(processes)
    assert identify(processes[0].pid) is None, "the command is reaped, no zombie"


@pytest.mark.parametrize("passes", range(8))
async def test_command_cancelled_during_start_is_killed(tmp_path: Path, passes: int) -> None:
    run = asyncio.create_task(CommandRunner().run(sh("echo $$ > pids; sleep 60", cwd=tmp_path)))
    for _ in range(passes):
        await asyncio.sleep(0)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert asyncio.all_tasks() == {asyncio.current_task()}
    if read_if_exists(tmp_path / "pids"):
        await gone(await pids_in(tmp_path / "pids", 1))


async def test_observer_gets_a_report_of_each_command(tmp_path: Path) -> None:
    reports: list[CommandReport] = []
    runner = CommandRunner(reports.append)
    await runner.run(Command((sys.executable, "-c", "pass"), timeout_s=20))
    await runner.run(sh("exit 1"), check=False)
    with pytest.raises(CommandTimeoutError):
        await runner.run(sh("sleep 60", timeout_s=0.1))
    with pytest.raises(ProgramMissingError):
        await runner.run(Command(("no-such-tool",), timeout_s=5))
    cancelled = asyncio.create_task(runner.run(sh("echo $$ > pids; sleep 60", cwd=tmp_path)))
    await pids_in(tmp_path / "pids", 1)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert [(report.program, report.outcome) for report in reports] == [
        (Path(sys.executable).name, CommandOutcome.OK),
        ("sh", CommandOutcome.FAILED),
        ("sh", CommandOutcome.TIMEOUT),
        ("no-such-tool", CommandOutcome.MISSING),
        ("sh", CommandOutcome.CANCELLED),
    ]
    assert all(report.duration_s < 10 for report in reports)
