"""Exec sessions in the guests of every driver, and the fallback for a driver without sessions."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import psutil
import pytest

from agent.hypervisors.contract import ExecResult, GuestError
from agent.hypervisors.sessions import KILLED, open_exec
from tests.hypervisors.rigs import spec
from tests.hypervisors.test_conformance import BOOT_S, start_vm
from tests.support.processes import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.hypervisors.contract import Hypervisor
    from agent.hypervisors.sessions import ExecSession, Signal
    from tests.hypervisors.rigs import Rig


@asynccontextmanager
async def open_session(driver: Hypervisor, *argv: str, stdin: bool = False) -> AsyncIterator[ExecSession]:
    """Run a command in the test's VM, and close its session at the end."""
    session = await open_exec(driver, spec().name, argv, stdin=stdin)
    try:
        yield session
    finally:
        await session.close()


async def read_all(session: ExecSession) -> dict[str, bytes]:
    """Return the complete output of a command, by stream."""
    streams = {"stdout": b"", "stderr": b""}
    async for item in session.output():
        streams[item.stream] += item.data
    return streams


async def test_session_has_output_input_and_signals(driver: Hypervisor, rig: Rig) -> None:
    await start_vm(driver, rig, booted=True)
    async with open_session(driver, "echo", "hello") as session:
        assert await read_all(session) == {"stdout": b"hello\n", "stderr": b""}
        assert session.exit_code == 0
    async with open_session(driver, "sh", "-c", "exit 7") as session:
        await read_all(session)
        assert session.exit_code == 7
    async with open_session(driver, "cat") as session:  # without input, reads the end of its input immediately
        assert await read_all(session) == {"stdout": b"", "stderr": b""}
    async with open_session(driver, "cat", stdin=True) as session:
        output = session.output()
        for line in (b"one\n", b"two\0\xff\n"):
            await session.write(line)
            assert (await anext(output)).data == line, "output arrives while the command runs"
            assert session.exit_code is None
        await session.end_input()
        assert [item async for item in output] == []
        assert session.exit_code == 0
    exit_codes: dict[Signal, int] = {"INT": 130, "TERM": 143, "KILL": KILLED}
    for name, exit_code in exit_codes.items():
        async with open_session(driver, "sleep", "600") as session:
            await session.signal(name)
            await read_all(session)
            assert session.exit_code == exit_code
            await session.signal("TERM")  # has no effect on a command that has ended
    async with open_session(driver, "sleep", "600") as session:
        rig.kill(spec().name)
        with pytest.raises(GuestError, match=spec().name):
            await read_all(session)


async def run_to_end(driver: Hypervisor, *argv: str) -> ExecResult:
    return await driver.execute(spec().name, argv, timeout_s=20)


async def run_in_session(driver: Hypervisor, *argv: str) -> ExecResult:
    async with asyncio.timeout(20), open_session(driver, *argv) as session:
        streams = await read_all(session)
        assert session.exit_code is not None
        return ExecResult(session.exit_code, streams["stdout"], streams["stderr"])


async def test_commands_end_alike_in_both_calls_of_every_driver(driver: Hypervisor, rig: Rig) -> None:
    """The exit codes are those of a shell, and a command ends when its own process ends."""
    await start_vm(driver, rig, booted=True)
    for run in (run_to_end, run_in_session):
        for missing in ("no-such-program", "/no/such/program"):
            result = await run(driver, missing)
            assert (result.exit_code, result.stdout) == (127, b"")
            assert missing.encode() in result.stderr
        for no_program in ("/", "/etc/passwd"):
            result = await run(driver, no_program)
            assert (result.exit_code, result.stdout) == (126, b"")
            assert no_program.encode() in result.stderr
        assert (await run(driver, "sh", "-c", "exit 7")).exit_code == 7
        assert await run(driver, "sh", "-c", "kill -TERM $$") == ExecResult(143, b"", b"")
        assert await run(driver, "sh", "-c", "sleep 600 & echo begun") == ExecResult(0, b"begun\n", b"")


@pytest.mark.qemu
@pytest.mark.parametrize("rig", ["qemu"], indirect=True)
async def test_command_run_to_its_end_in_a_real_guest(driver: Hypervisor, rig: Rig) -> None:
    """The driver returns the beginning of each output, and leaves no files."""
    await start_vm(driver, rig, booted=True)
    script = "yes 0123456789abcde | head -c 3000000; echo problem >&2; echo >&2; sleep 600 & exit 3"
    result = await run_to_end(driver, "sh", "-c", script)
    assert (result.exit_code, result.stderr, result.truncated) == (3, b"problem\n\n", True)
    assert result.stdout == (b"0123456789abcde\n" * (1 << 16))[: 1 << 20]
    assert (await run_to_end(driver, "cat")).stdout == b""
    assert (await run_to_end(driver, "sh", "-c", "ls -d /var/tmp/hearth* /tmp/hearth*")).stdout == b""
    assert (await run_to_end(driver, "unset", "HOME")).exit_code == 127, "a builtin of the shell is no program"


@pytest.mark.qemu
@pytest.mark.parametrize("rig", ["qemu"], indirect=True)
async def test_session_in_a_real_guest(driver: Hypervisor, rig: Rig) -> None:
    await start_vm(driver, rig, booted=True)
    async with open_session(driver, "no-such-program") as session:
        assert b"no-such-program" in (await read_all(session))["stderr"]
        assert session.exit_code == 127
    script = "yes 0123456789abcde | head -c 3000000; echo problem >&2; sleep 600 & exit 3"
    async with open_session(driver, "sh", "-c", script) as session:
        streams = await read_all(session)
        assert (len(streams["stdout"]), streams["stderr"], session.exit_code) == (3_000_000, b"problem\n", 3)

    size = 1_000_000
    async with open_session(driver, "sh", "-c", "sleep 1; wc -c", stdin=True) as session:
        feeding = asyncio.create_task(feed(session, bytes(size)))
        counted = int((await read_all(session))["stdout"])
        await feeding
        assert counted == size, "input is complete also when the command reads it late"

    async with open_session(driver, "true", stdin=True) as session:
        await session.write(bytes(1 << 20))  # the command does not read it; the write ends with the command
        await read_all(session)

    async with open_session(driver, "sh", "-c", "sleep 600 & echo $!; wait", stdin=True) as session:
        child = (await anext(session.output())).data.decode().strip()
        feeding = asyncio.create_task(session.write(bytes(1 << 20)))
    await feeding
    # The processes that the command started end too; the guest's init reaps them a moment later.
    async with asyncio.timeout(BOOT_S):
        while (await driver.execute(spec().name, ("kill", "-0", child), timeout_s=BOOT_S)).exit_code == 0:
            pass
    left = await driver.execute(spec().name, ("sh", "-c", "ls -d /var/tmp/hearth* /tmp/hearth*"), timeout_s=BOOT_S)
    assert left.stdout == b"", "no session leaves files"


async def feed(session: ExecSession, data: bytes) -> None:
    await session.write(data)
    await session.end_input()


class BufferingDriver:
    """A driver without exec sessions."""

    name = "plain"

    def __init__(self) -> None:
        self.called = asyncio.Event()

    async def execute(self, name: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
        self.called.set()
        if argv[0] == "sleep":
            await asyncio.Event().wait()
        return ExecResult(5, b"out", b"err")


async def test_buffered_session_returns_all_output_at_the_end() -> None:
    plain = BufferingDriver()
    driver = cast("Hypervisor", plain)
    async with open_session(driver, "ls") as session:
        assert await read_all(session) == {"stdout": b"out", "stderr": b"err"}
        assert session.exit_code == 5
        with pytest.raises(GuestError, match="accepts no input"):
            await session.write(b"x")
    with pytest.raises(GuestError, match="cannot pass input"):
        await open_exec(driver, spec().name, ("cat",), stdin=True)
    async with open_session(driver, "sleep") as session:
        await plain.called.wait()
        await session.signal("TERM")
        assert await read_all(session) == {"stdout": b"", "stderr": b""}
        assert session.exit_code == KILLED


@pytest.mark.slow
@pytest.mark.parametrize("rig", ["tart", "anka"], indirect=True)
async def test_commands_end_with_a_killed_simulated_guest(driver: Hypervisor, rig: Rig) -> None:
    """Otherwise commands of ended tests would run on in the simulators."""
    seconds = f"611.{os.getpid()}"
    await start_vm(driver, rig)
    await driver.ping(spec().name, timeout_s=BOOT_S)
    async with open_session(driver, "sh", "-c", f"sleep {seconds} & wait"):
        await eventually(lambda: _is_sleeping(seconds))
        rig.kill(spec().name)
        await eventually(lambda: not _is_sleeping(seconds))


def _is_sleeping(seconds: str) -> bool:
    commands = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    return any(command[-1:] == [seconds] for command in commands)
