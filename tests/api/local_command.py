"""A command of a guest that runs as a process of this machine."""

from __future__ import annotations

import asyncio
import os
import signal as signals
from contextlib import suppress
from typing import TYPE_CHECKING

from agent.hypervisors.sessions import Output

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from typing import Literal

    from agent.hypervisors.sessions import Signal


class LocalCommand:
    """Implements `agent.hypervisors.sessions.ExecSession`."""

    def __init__(self, process: asyncio.subprocess.Process, closed: asyncio.Event) -> None:
        self.process = process
        self.closed = closed

    @classmethod
    async def start(cls, argv: tuple[str, ...], *, stdin: bool, closed: asyncio.Event) -> LocalCommand:
        pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=pipe if stdin else nothing, stdout=pipe, stderr=pipe, start_new_session=True
        )
        return cls(process, closed)

    @property
    def exit_code(self) -> int | None:
        code = self.process.returncode
        return 128 - code if code is not None and code < 0 else code

    async def output(self) -> AsyncGenerator[Output, None]:
        queue: asyncio.Queue[Output | None] = asyncio.Queue(1)

        async def pump(stream: Literal["stdout", "stderr"]) -> None:
            reader = getattr(self.process, stream)
            while data := await reader.read(1 << 16):
                await queue.put(Output(stream, data))
            await queue.put(None)

        pumps = [asyncio.create_task(pump("stdout")), asyncio.create_task(pump("stderr"))]
        try:
            for _ in pumps:
                while (item := await queue.get()) is not None:
                    yield item
            await self.process.wait()
        finally:
            for task in pumps:
                task.cancel()

    async def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        with suppress(ConnectionError):
            self.process.stdin.write(data)
            await self.process.stdin.drain()

    async def end_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    async def signal(self, signal: Signal) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, getattr(signals, f"SIG{signal}"))

    async def close(self) -> None:
        await self.signal("KILL")
        for reader in (self.process.stdout, self.process.stderr):
            assert reader is not None
            await reader.read()  # otherwise asyncio waits for the pipes
        await self.process.wait()
        self.closed.set()
