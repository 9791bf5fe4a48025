"""Guest disks: the builder's output, and the behaviour of the running guests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.support.guests import build_image, run_builder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.guests import SmallImage

BLOCK = 64 * 1024
BOOT_DEADLINE_S = 90.0
ANSWER_DEADLINE_S = 15.0
SILENCE_S = 1.5


@dataclass(frozen=True)
class Guest:
    """A running guest: its process with the serial console on stdout, its agent socket and forwarded ports."""

    process: asyncio.subprocess.Process
    agent_socket: Path
    ports: dict[int, int]
    console: list[str] = field(default_factory=list)

    async def wait_for_console(self, pattern: str) -> None:
        """Read the console until a line matches. Lines read earlier count too."""
        assert self.process.stdout is not None
        async with asyncio.timeout(BOOT_DEADLINE_S):
            while not any(re.search(pattern, line) for line in self.console):
                line = await self.process.stdout.readline()
                assert line, f"the console never printed {pattern!r}: {self.console}"
                self.console.append(line.decode(errors="replace"))

    async def call_agent(self, command: str, **arguments: Any) -> Any:
        """Send one command to the guest agent and return its answer."""
        reader, writer = await asyncio.open_unix_connection(self.agent_socket)
        try:
            writer.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            return json.loads(await reader.readline())["return"]
        finally:
            writer.close()

    async def execute(self, *argv: str) -> str:
        """Run a command in the guest and return what it printed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[22])
        assert (await reader.readline()).startswith(b"SSH-2.0-")
        writer.close()
        client = await asyncio.create_subprocess_exec(
            "ssh", "-p", str(self.ports[22]), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
            "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "root@127.0.0.1", *argv,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await client.communicate()
        return output.decode()


@contextlib.asynccontextmanager
async def boot(disk: Path, folder: Path, *, memory_mib: int = 256) -> AsyncIterator[Guest]:
    """Start a guest on a temporary overlay of `disk`; kill it when the block ends."""
    ports = {guest_port: _free_port() for guest_port in (22, 8080)}
    agent_socket = folder / "agent.sock"
    forwards = ",".join(f"hostfwd=tcp:127.0.0.1:{host}-:{guest}" for guest, host in ports.items())
    process = await asyncio.create_subprocess_exec(
        "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", str(memory_mib), "-nodefaults", "-display", "none",
        "-no-reboot", "-serial", "stdio",
        "-drive", f"file={disk},format=raw,if=virtio,snapshot=on",
        "-netdev", f"user,id=net,{forwards}", "-device", "virtio-net-pci,netdev=net",
        "-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,path={agent_socket},server=on,wait=off",
        "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
        "-device", "virtio-rng-pci",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Guest(process, agent_socket, ports)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def fetch(port: int) -> str:
    """Return the response of the guest's HTTP server at `/`."""
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/") as response:
        return await response.text()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.qemu
async def test_healthy_guest_serves_version_and_powers_off(small_image: SmallImage, tmp_path: Path) -> None:
    async with boot(small_image("1.0"), tmp_path) as guest:
        await guest.wait_for_console(r"booted version=1\.0")
        await guest.wait_for_console("network 10")
        await guest.wait_for_console(r"serving version=1\.0")
        async with asyncio.timeout(ANSWER_DEADLINE_S):
            assert await guest.call_agent("guest-ping") == {}
            assert await fetch(guest.ports[8080]) == "1.0\n"
            assert await guest.execute("cat", "/etc/hearth-version") == "1.0\n"
            assert (await guest.call_agent("guest-exec", path="/bin/sh", arg=["-c", "exit 0"]))["pid"] > 0
            await power_off(guest)
            assert await guest.process.wait() == 0


@pytest.mark.qemu
@pytest.mark.timeout(600)
@pytest.mark.skipif(not os.environ.get("HEARTH_SLOW"), reason="takes minutes; set HEARTH_SLOW=1")
async def test_debian_guest_version_adds_package(tmp_path: Path) -> None:
    one, two = tmp_path / "one.img", tmp_path / "two.img"
    build_image("debian", "--version", "1", str(one))
    build_image("debian", "--version", "2", "--from", str(one), "--add", "tree", str(two))
    async with boot(two, tmp_path, memory_mib=512) as guest, asyncio.timeout(2 * BOOT_DEADLINE_S):
        await guest.wait_for_console("hearth-guest ttyS0")
        assert await guest.call_agent("guest-ping") == {}
        assert (await guest.execute("tree", "--version")).startswith("tree v")
        assert await fetch(guest.ports[8080]) == "2\n"
        await power_off(guest)
        assert await guest.process.wait() == 0


async def power_off(guest: Guest) -> None:
    """Power off by the guest agent, which sends no response to this command."""
    _, writer = await asyncio.open_unix_connection(guest.agent_socket)
    writer.write(b'{"execute": "guest-shutdown"}\n')
    await writer.drain()
    writer.close()


@pytest.mark.qemu
async def test_unhealthy_guest_boots_and_starts_no_service(small_image: SmallImage, tmp_path: Path) -> None:
    async with boot(small_image("1.0", unhealthy=True), tmp_path) as guest:
        await guest.wait_for_console("unhealthy: starts no service")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(guest.call_agent("guest-ping"), SILENCE_S)
        with pytest.raises((aiohttp.ClientError, TimeoutError)):
            await asyncio.wait_for(fetch(guest.ports[8080]), SILENCE_S)
        assert guest.process.returncode is None


@pytest.mark.qemu
async def test_dying_guest_serves_and_then_powers_off(small_image: SmallImage, tmp_path: Path) -> None:
    async with boot(small_image("1.0", dies_after_s=2), tmp_path) as guest:
        await guest.wait_for_console("serving version")
        async with asyncio.timeout(ANSWER_DEADLINE_S):
            assert await guest.call_agent("guest-ping") == {}
            await guest.wait_for_console("dying after 2 s")
            assert await guest.process.wait() == 0


def test_same_version_builds_same_bytes(small_image: SmallImage, tmp_path: Path) -> None:
    again = tmp_path / "again.img"
    build_image("small", "--version", "1.0", str(again))
    assert again.read_bytes() == small_image("1.0").read_bytes()


def test_versions_and_flavours_differ_in_two_blocks_at_most(small_image: SmallImage) -> None:
    one = small_image("1.0").read_bytes()
    for other in (small_image("2.0"), small_image("1.0", unhealthy=True)):
        assert len(differing_blocks(one, other.read_bytes())) in {1, 2}  # the boot parameters, and their length


def differing_blocks(one: bytes, other: bytes) -> list[int]:
    """Return the numbers of the 64 KiB blocks in which two disks of the same size differ."""
    assert len(one) == len(other)
    return [at // BLOCK for at in range(0, len(one), BLOCK) if one[at : at + BLOCK] != other[at : at + BLOCK]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--version", "1.0 beta"], "is not a version"),
        (["--version", "1.0", "--dies-after", "soon"], "is not a whole number of seconds"),
        ([], "--version"),
    ],
)
def test_bad_argument_error_writes_no_disk(arguments: list[str], words: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    done = run_builder("small", *arguments, str(disk))
    assert done.returncode == 2
    assert words in done.stderr
    assert not disk.exists()


def test_missing_tool_error_names_package_and_keeps_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"old")
    done = run_builder("small", "--version", "1.0", str(disk), env={"PATH": "/nowhere"})
    assert done.returncode == 1
    assert "apt-get install coreutils mtools" in done.stderr
    assert disk.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["disk.img"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from", "no-such-disk"], "there is no disk no-such-disk"),
        (["--add", "--purge"], "expected one argument"),
        (["--add", "Git"], "is not the name of a Debian package"),
    ],
)
def test_debian_guest_rejects_bad_argument(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = run_builder("debian", "--version", "1", *arguments, str(tmp_path / "disk.img"))
    assert done.returncode in {1, 2}
    assert words in done.stderr
    assert not list(tmp_path.iterdir())


def test_contradicting_flavours_are_refused(tmp_path: Path) -> None:
    done = run_builder("small", "--version", "1.0", "--unhealthy", "--dies-after", "5", str(tmp_path / "disk.img"))
    assert done.returncode == 2
    assert "not allowed with" in done.stderr
