"""Commands that are followed while they run, in the guests of every driver that can, and of one that cannot."""

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
from tests.hypervisors.test_conformance import BOOT_S, running
from tests.support.processes import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.hypervisors.contract import Hypervisor
    from agent.hypervisors.sessions import ExecSession, Signal
    from tests.hypervisors.rigs import Rig


@asynccontextmanager
async def command(driver: Hypervisor, *argv: str, stdin: bool = False) -> AsyncIterator[ExecSession]:
    """Run a command in the test's VM, and leave nothing of it."""
    session = await open_exec(driver, spec().name, argv, stdin=stdin)
    try:
        yield session
    finally:
        await session.close()


async def told(session: ExecSession) -> dict[str, bytes]:
    """Return all that a command writes, by stream."""
    streams = {"stdout": b"", "stderr": b""}
    async for item in session.output():
        streams[item.stream] += item.data
    return streams


async def test_session_has_output_input_and_signals(driver: Hypervisor, rig: Rig) -> None:
    await running(driver, rig, booted=True)
    async with command(driver, "echo", "hello") as session:
        assert await told(session) == {"stdout": b"hello\n", "stderr": b""}
        assert session.exit_code == 0
    async with command(driver, "sh", "-c", "exit 7") as session:
        await told(session)
        assert session.exit_code == 7
    async with command(driver, "cat") as session:  # without input it reads the end at once
        assert await told(session) == {"stdout": b"", "stderr": b""}
    async with command(driver, "cat", stdin=True) as session:
        output = session.output()
        for line in (b"one\n", b"two\0\xff\n"):
            await session.write(line)
            assert (await anext(output)).data == line, "output comes while the command runs"
            assert session.exit_code is None
        await session.end_input()
        assert [item async for item in output] == []
        assert session.exit_code == 0
    exit_codes: dict[Signal, int] = {"INT": 130, "TERM": 143, "KILL": KILLED}
    for name, exit_code in exit_codes.items():
        async with command(driver, "sleep", "600") as session:
            await session.signal(name)
            await told(session)
            assert session.exit_code == exit_code
            await session.signal("TERM")  # has no effect on a command that has ended
    async with command(driver, "sleep", "600") as session:
        rig.kill(spec().name)
        with pytest.raises(GuestError, match=spec().name):
            await told(session)


@pytest.mark.qemu
@pytest.mark.parametrize("rig", ["qemu"], indirect=True)
async def test_session_in_a_real_guest(driver: Hypervisor, rig: Rig) -> None:
    await running(driver, rig, booted=True)
    async with command(driver, "no-such-program") as session:
        assert b"no-such-program" in (await told(session))["stderr"]
        assert session.exit_code == 127
    script = "yes 0123456789abcde | head -c 3000000; echo problem >&2; sleep 600 & exit 3"
    async with command(driver, "sh", "-c", script) as session:
        streams = await told(session)
        assert (len(streams["stdout"]), streams["stderr"], session.exit_code) == (3_000_000, b"problem\n", 3)

    size = 1_000_000
    async with command(driver, "sh", "-c", "sleep 1; wc -c", stdin=True) as session:
        feeding = asyncio.create_task(feed(session, bytes(size)))
        counted = int((await told(session))["stdout"])
        await feeding
        assert counted == size, "nothing is lost when it is read later"

    async with command(driver, "true", stdin=True) as session:
        await session.write(bytes(1 << 20))  # nobody reads it, and that ends with the command
        await told(session)

    async with command(driver, "sh", "-c", "sleep 600 & echo $!; wait", stdin=True) as session:
        child = (await anext(session.output())).data.decode().strip()
        feeding = asyncio.create_task(session.write(bytes(1 << 20)))
    await feeding
    gone = await driver.execute(spec().name, ("kill", "-0", child), timeout_s=BOOT_S)
    assert gone.exit_code != 0, "what the command started went with it"
    left = await driver.execute(spec().name, ("sh", "-c", "ls -d /var/tmp/hearth* /tmp/hearth*"), timeout_s=BOOT_S)
    assert left.stdout == b"", "nothing is left of any of them"


async def feed(session: ExecSession, data: bytes) -> None:
    await session.write(data)
    await session.end_input()


class RunsToEnd:
    """A driver that can only run commands to their end."""

    name = "plain"

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def execute(self, name: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
        self.asked.set()
        if argv[0] == "sleep":
            await asyncio.Event().wait()
        return ExecResult(5, b"out", b"err")


async def test_buffered_session_returns_all_output_at_the_end() -> None:
    plain = RunsToEnd()
    driver = cast("Hypervisor", plain)
    async with command(driver, "ls") as session:
        assert await told(session) == {"stdout": b"out", "stderr": b"err"}
        assert session.exit_code == 5
        with pytest.raises(GuestError, match="accepts no input"):
            await session.write(b"x")
    with pytest.raises(GuestError, match="cannot pass input"):
        await open_exec(driver, spec().name, ("cat",), stdin=True)
    async with command(driver, "sleep") as session:
        await plain.asked.wait()
        await session.signal("TERM")
        assert await told(session) == {"stdout": b"", "stderr": b""}
        assert session.exit_code == KILLED


@pytest.mark.parametrize("rig", ["tart", "anka"], indirect=True)
async def test_commands_end_with_a_killed_simulated_guest(driver: Hypervisor, rig: Rig) -> None:
    """Of the simulators: what they leave would run on for as long as it was told to."""
    seconds = f"611.{os.getpid()}"
    await running(driver, rig)
    await driver.ping(spec().name, timeout_s=BOOT_S)
    async with command(driver, "sh", "-c", f"sleep {seconds} & wait"):
        await eventually(lambda: _sleeping(seconds))
        rig.kill(spec().name)
        await eventually(lambda: not _sleeping(seconds))


def _sleeping(seconds: str) -> bool:
    commands = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    return any(command[-1:] == [seconds] for command in commands)
