"""The guest of one simulated VM: boots, hangs, answers, and serves its ports for real where that is wanted."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Final

from agent.hypervisors.contract import ExecResult

if TYPE_CHECKING:
    from agent.hypervisors.contract import VmSpec
    from agent.hypervisors.simulated.vm import Memory

_EXIT: Final = re.compile(r"exit (\d{1,3})")
"""The one script a simulated shell knows."""


class Guest:
    """What answers inside a VM. It does so once it is up, until it hangs."""

    def __init__(self, greeting: str, memory: Memory) -> None:
        self.up = asyncio.Event()
        self.ports: dict[int, int] = {}
        self.memory = memory
        self._greeting = greeting
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.StreamWriter] = set()

    async def serve(self, spec: VmSpec) -> None:
        """Listen on a free loopback port for each of the VM's ports, with a little HTTP behind it."""
        for port in spec.ports:
            server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
            self._servers.append(server)
            self.ports[port] = server.sockets[0].getsockname()[1]

    def execute(self, argv: tuple[str, ...]) -> ExecResult:
        """Pretend to run a command: a few do what they are known for, as far as it can be seen; all others succeed."""
        program, *arguments = argv
        memory, path = self.memory, arguments[-1] if arguments else ""
        said, succeeds = b"", True
        if program == "sh" and (told := _EXIT.fullmatch(path)):
            return ExecResult(exit_code=int(told[1]), stdout=b"", stderr=b"")
        match program:
            case "echo":
                said = f"{' '.join(arguments)}\n".encode()
            case "hostname":
                said = f"{memory.hostname}\n".encode()
            case "touch":
                memory.files.add(path)
            case "rm":
                memory.files.discard(path)
            case "ls" | "test":
                succeeds = path in memory.files
            case "false":
                succeeds = False
        return ExecResult(exit_code=0 if succeeds else 1, stdout=said, stderr=b"")

    def close(self) -> None:
        """Close every port and connection."""
        for server in self._servers:
            server.close()
        for writer in self._connections:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request with the guest's greeting. One that hangs leaves its client waiting."""
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
