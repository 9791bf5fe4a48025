"""An external command that is followed while it runs: output as it comes, input as given, its group ended with it.

Where `command.py` runs a command to its end within a time, this one lives as long as whoever follows it.
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
"""How long a killed command may take to vanish."""

Stream = Literal["stdout", "stderr"]


class FollowedCommand:
    """One running command. Made by `start`; `close` leaves nothing of its process group."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._reads: dict[asyncio.Task[bytes], Stream] = {}

    @classmethod
    async def start(cls, argv: tuple[str, ...], *, stdin: bool, env: Mapping[str, str]) -> FollowedCommand:
        """Start a command in a session of its own; `env` is added to the agent's. Raises `ProgramMissingError`."""
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
            raise ProgramMissingError(f"the program {argv[0]} cannot be started: {error}") from error
        return cls(process)

    async def output(self) -> AsyncGenerator[tuple[Stream, bytes], None]:
        """Tell what it writes as it comes, until it has closed both streams and ended. Reads no further than asked."""
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
        """Give it input, as fast as it takes it. What it does not read any more is dropped."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(data)
            await self._process.stdin.drain()

    def end_input(self) -> None:
        """Let it read the end of its input."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def close(self) -> None:
        """Kill what is left of its group, and wait for it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for read in self._reads:
            read.cancel()
        await asyncio.gather(*self._reads, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await self._process.communicate()
