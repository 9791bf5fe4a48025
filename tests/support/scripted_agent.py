"""A guest agent that a test scripts: qemu-ga's end of the socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from agent.hypervisors.qemu.agent_messages import RESET
from agent.hypervisors.qemu.guest_agent import GuestAgent
from agent.hypervisors.qemu.sockets import listen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

Request = dict[str, object]
Script = Callable[[Request, "ScriptedAgent"], Awaitable[None]]


class ScriptedAgent:
    """The agent's end of the socket: answers the sync like qemu-ga, and all other requests by a script."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._writer: asyncio.StreamWriter
        self.requests: list[Request] = []
        self.connections = 0

    def send(self, message: object) -> None:
        self.send_raw(json.dumps(message).encode() + b"\n")

    def send_raw(self, data: bytes) -> None:
        self._writer.write(data)

    def disconnect(self) -> None:
        self._writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writer = writer
        try:
            while line := await reader.readline():
                request = json.loads(line.lstrip(RESET))
                if request["execute"] == "guest-sync-delimited":
                    self.send_raw(RESET)
                    self.send({"return": request["arguments"]["id"]})
                else:
                    self.requests.append(request)
                    await self._script(request, self)
        finally:
            writer.close()


@asynccontextmanager
async def connected_to(script: Script, folder: Path) -> AsyncIterator[tuple[GuestAgent, ScriptedAgent]]:
    path = folder / "agent.sock"
    scripted = ScriptedAgent(script)
    server = await asyncio.start_unix_server(scripted.serve, sock=listen(path))
    client = GuestAgent("vm-1", path)
    try:
        async with server:
            yield client, scripted
    finally:
        client.close()
        await asyncio.sleep(0)
