"""An external command that takes input and streams its output while it runs.

Unlike a command of `command.py`, it has no timeout: it runs until its caller closes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Final, Literal

from agent.processes.command import ProgramMissingError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

CHUNK_BYTES: Final = 64 << 10
END_S: Final = 5.0
"""Time that a killed command gets to end."""

Stream = Literal["stdout", "stderr"]


class FollowedCommand:
    """One running command. Create it with `start`; `close` kills its whole process group."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._reads: dict[asyncio.Task[bytes], Stream] = {}

    @classmethod
    async def start(cls, argv: tuple[str, ...], *, stdin: bool, env: Mapping[str, str]) -> FollowedCommand:
        """Start a command in its own session. `env` is added to the environment of the agent.

        Raises `ProgramMissingError`.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, **env},
                start_new_session=True,
            )
        except OSError as error:
            raise ProgramMissingError(f"program {argv[0]} cannot be started: {error}") from error
        return cls(process)

    async def output(self) -> AsyncGenerator[tuple[Stream, bytes], None]:
        """Yield the output as it arrives, until both streams are closed and the command has ended.

        The amount that is read ahead is limited, so that a slow consumer slows the command.
        """
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        readers: dict[Stream, asyncio.StreamReader] = {"stdout": self._process.stdout, "stderr": self._process.stderr}
        self._reads = {asyncio.create_task(reader.read(CHUNK_BYTES)): name for name, reader in readers.items()}
        while self._reads:
            done, _ = await asyncio.wait(self._reads, return_when=asyncio.FIRST_COMPLETED)
            for read in done:
                name = self._reads.pop(read)
                if data := read.result():
                    self._reads[asyncio.create_task(readers[name].read(CHUNK_BYTES))] = name
                    yield name, data
        await self._process.wait()

    async def write(self, data: bytes) -> None:
        """Write input, and wait while the pipe is full. Input is dropped if the command has closed its stdin."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(data)
            await self._process.stdin.drain()

    def end_input(self) -> None:
        """Close the input of the command."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def close(self) -> None:
        """Kill the rest of the process group, and wait up to `END_S` for the command to end."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for read in self._reads:
            read.cancel()
        await asyncio.gather(*self._reads, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await self._process.communicate()
