"""Detached processes: they outlive their parent, are identified by start time, and are watched for their exit."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.processes.exit_watcher import ExitWatcher, create_exit_watcher
from agent.processes.process import ProcessIdentity, identify, is_alive, kill, spawn_detached
from tests.support.processes import eventually, gone, open_fds

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
async def watcher() -> object:
    before = open_fds()
    watcher = create_exit_watcher()
    yield watcher
    watcher.close()
    assert open_fds() == before


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[ProcessIdentity]:
    process = spawn_detached(["sleep", "60"], output=tmp_path / "out", cwd=tmp_path)
    yield process
    kill(process, signal.SIGKILL)


def orphan(tmp_path: Path, argv: list[str]) -> ProcessIdentity:
    """Start a detached process from a child interpreter that is then killed with its whole process group."""
    script = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from agent.processes.process import spawn_detached
        here = Path(sys.argv[1])
        print(spawn_detached(sys.argv[2:], output=here / "out", cwd=here).pid, flush=True)
        os.killpg(0, signal.SIGKILL)
    """)
    parent = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), *argv],
        stdout=subprocess.PIPE,
        start_new_session=True,
        check=False,
        timeout=20,
    )
    assert parent.returncode == -signal.SIGKILL
    identity = identify(int(parent.stdout))
    assert identity is not None
    return identity


async def exit_of(watcher: ExitWatcher, process: ProcessIdentity) -> asyncio.Future[int | None]:
    exited: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
    watcher.watch(process, exited.set_result)
    return exited


def test_identity_differs_when_a_pid_is_reused(sleeper: ProcessIdentity) -> None:
    assert identify(sleeper.pid) == sleeper
    assert is_alive(sleeper)
    recycled = ProcessIdentity(sleeper.pid, sleeper.started - 1)
    assert not is_alive(recycled)
    assert not kill(recycled, signal.SIGKILL)
    assert is_alive(sleeper), "another process with the same pid is never killed"


async def test_zombie_is_not_alive_and_not_signalled(watcher: ExitWatcher, tmp_path: Path) -> None:
    process = spawn_detached(["true"], output=tmp_path / "out", cwd=tmp_path)
    await gone([process])
    assert identify(process.pid) == process, "still a zombie: it was not reaped"
    assert not is_alive(process)
    assert not kill(process, signal.SIGKILL)
    assert await asyncio.wait_for(await exit_of(watcher, process), 5) == 0
    assert identify(process.pid) is None
    assert not kill(process, signal.SIGKILL)


async def test_detached_process_has_its_own_session_and_files(tmp_path: Path) -> None:
    ready = ["sh", "-c", "echo ready; kill -STOP $$"]  # by then the loader has closed its own files
    process = spawn_detached(ready, output=tmp_path / "out", cwd=tmp_path)
    try:
        await eventually((tmp_path / "out").read_text)
        assert os.getsid(process.pid) == process.pid
        if sys.platform == "linux":
            fds = {fd: Path(f"/proc/{process.pid}/fd/{fd}").readlink() for fd in os.listdir(f"/proc/{process.pid}/fd")}
            assert fds == {"0": Path("/dev/null"), "1": tmp_path / "out", "2": tmp_path / "out"}
    finally:
        kill(process, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="reads descriptors of another process under /proc")
def test_detached_process_gets_only_passed_descriptors(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.set_inheritable(read, True)  # as under a shell or a CI runner
    process = spawn_detached(["sleep", "60"], output=tmp_path / "out", cwd=tmp_path, pass_fds=[write])
    os.close(write)
    try:
        assert str(read) not in os.listdir(f"/proc/{process.pid}/fd")
        assert str(write) in os.listdir(f"/proc/{process.pid}/fd")
    finally:
        kill(process, signal.SIGKILL)
        os.close(read)


async def test_detached_output_is_appended_to_the_file(watcher: ExitWatcher, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("before\n")
    script = "echo out; echo err >&2; pwd; read line || echo no input"
    process = spawn_detached(["sh", "-c", script], output=tmp_path / "out", cwd=tmp_path)
    assert await asyncio.wait_for(await exit_of(watcher, process), 5) == 0
    assert (tmp_path / "out").read_text() == f"before\nout\nerr\n{tmp_path}\nno input\n"


def test_spawn_raises_oserror_for_a_missing_program(tmp_path: Path) -> None:
    with pytest.raises((FileNotFoundError, PermissionError)):  # PermissionError: a folder of PATH is not readable
        spawn_detached(["no-such-tool"], output=tmp_path / "out", cwd=tmp_path)


async def test_watcher_reports_the_exit_code_and_reaps_a_child(watcher: ExitWatcher, tmp_path: Path) -> None:
    process = spawn_detached(["sh", "-c", "exit 7"], output=tmp_path / "out", cwd=tmp_path)
    assert await asyncio.wait_for(await exit_of(watcher, process), 5) == 7
    assert identify(process.pid) is None


async def test_watcher_reports_a_killed_child_within_half_a_second(
    watcher: ExitWatcher, sleeper: ProcessIdentity
) -> None:
    exited = await exit_of(watcher, sleeper)
    started = time.monotonic()
    assert kill(sleeper, signal.SIGKILL)
    assert await asyncio.wait_for(exited, 5) == -signal.SIGKILL
    assert time.monotonic() - started < 0.5
    assert identify(sleeper.pid) is None


async def test_watcher_reports_the_end_of_an_adopted_process(watcher: ExitWatcher, tmp_path: Path) -> None:
    process = orphan(tmp_path, ["sh", "-c", "echo still here; exec sleep 60"])
    await eventually(lambda: (tmp_path / "out").read_text() == "still here\n")
    assert is_alive(process)
    exited = await exit_of(watcher, process)
    assert kill(process, signal.SIGKILL)
    assert await asyncio.wait_for(exited, 5) is None, "not a child of this process: its exit code is unknown"


async def test_watcher_reports_a_process_that_has_already_ended(watcher: ExitWatcher, sleeper: ProcessIdentity) -> None:
    recycled = ProcessIdentity(sleeper.pid, sleeper.started - 1)
    assert await asyncio.wait_for(await exit_of(watcher, recycled), 5) is None
    kill(sleeper, signal.SIGKILL)
    await asyncio.wait_for(await exit_of(watcher, sleeper), 5)
    assert await asyncio.wait_for(await exit_of(watcher, sleeper), 5) is None


async def test_closed_watcher_reports_nothing(tmp_path: Path, sleeper: ProcessIdentity) -> None:
    watcher = create_exit_watcher()
    exited = await exit_of(watcher, sleeper)
    watcher.close()
    kill(sleeper, signal.SIGKILL)
    other = create_exit_watcher()
    await asyncio.wait_for(await exit_of(other, sleeper), 5)
    other.close()
    assert not exited.done()


async def test_watcher_and_asyncio_children_do_not_interfere(watcher: ExitWatcher, tmp_path: Path) -> None:
    async def of_asyncio(code: int) -> int:
        return await (await asyncio.create_subprocess_exec("sh", "-c", f"exit {code}")).wait()

    async def of_watcher(code: int) -> int | None:
        argv = ["sh", "-c", f"exit {code}"]
        process = await asyncio.to_thread(spawn_detached, argv, output=tmp_path / "out", cwd=tmp_path)
        return await asyncio.wait_for(await exit_of(watcher, process), 10)

    codes = await asyncio.gather(*(of(code) for code in range(1, 21) for of in (of_asyncio, of_watcher)))
    assert codes == [code for code in range(1, 21) for _ in range(2)]
