"""The guest of a simulated VM: boots, hangs, answers, and optionally serves its ports on the loopback interface."""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.hypervisors.contract import ExecResult

if TYPE_CHECKING:
    from agent.hypervisors.contract import VmSpec

_SCRIPT: Final = re.compile(r"exit (?P<code>\d{1,3})|sleep \d+ & echo (?P<word>\w+)|kill -TERM (?P<self>\$\$)")
"""The scripts that a simulated shell supports: an exit code, output while a process runs on that holds it open, a
signal."""
_MISSING: Final = frozenset({"no-such-program", "/no/such/program"})
_NOT_EXECUTABLE: Final = frozenset({"/", "/etc/passwd"})


@dataclass(slots=True)
class GuestState:
    """The state of a guest that a snapshot contains."""

    hostname: str
    files: set[str]

    def copy(self) -> GuestState:
        """Return an independent copy for another guest."""
        return GuestState(self.hostname, set(self.files))


class SimulatedGuest:
    """The guest of one VM. It answers while `up` is set: from the end of its boot until it hangs."""

    def __init__(self, greeting: str, state: GuestState) -> None:
        self.up = asyncio.Event()
        self.ports: dict[int, int] = {}
        self.state = state
        self._greeting = greeting
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.StreamWriter] = set()

    async def serve(self, spec: VmSpec) -> None:
        """Listen with a small HTTP server on a free loopback port for each of the VM's ports."""
        for port in spec.ports:
            server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
            self._servers.append(server)
            self.ports[port] = server.sockets[0].getsockname()[1]

    def execute(self, argv: tuple[str, ...]) -> ExecResult:
        """Simulate a command. A few have their usual output and effect on files; all others succeed without output.

        Exit codes are those of a shell. A command ends when its own process does.
        """
        program, *arguments = argv
        state, path = self.state, arguments[-1] if arguments else ""
        stdout, succeeds = b"", True
        if program in _MISSING | _NOT_EXECUTABLE:
            code, reason = (127, "not found") if program in _MISSING else (126, "Permission denied")
            return ExecResult(code, b"", f"sh: exec: {program}: {reason}\n".encode())
        if program == "sh" and (script := _SCRIPT.fullmatch(path)):
            return _script_result(script)
        match program:
            case "echo":
                stdout = f"{' '.join(arguments)}\n".encode()
            case "hostname":
                stdout = f"{state.hostname}\n".encode()
            case "touch":
                state.files.add(path)
            case "rm":
                state.files.discard(path)
            case "ls" | "test":
                succeeds = path in state.files
            case "false":
                succeeds = False
        return ExecResult(exit_code=0 if succeeds else 1, stdout=stdout, stderr=b"")

    def close(self) -> None:
        """Close every port and connection."""
        for server in self._servers:
            server.close()
        for writer in self._connections:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request with the greeting, once the guest is up."""
        self._connections.add(writer)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                await self.up.wait()
                body = f"{self._greeting}\n".encode()
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
        finally:
            self._connections.discard(writer)
            writer.close()


def _script_result(script: re.Match[str]) -> ExecResult:
    stdout = f"{script['word']}\n".encode() if script["word"] else b""
    return ExecResult(143 if script["self"] else int(script["code"] or 0), stdout, b"")
