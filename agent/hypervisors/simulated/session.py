"""A command in a simulated guest that is followed while it runs; see `ExecSession`."""

from __future__ import annotations

import asyncio
import signal as signals
from typing import TYPE_CHECKING

from agent.hypervisors.contract import GuestError
from agent.hypervisors.sessions import Output

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine

    from agent.hypervisors.sessions import Signal
    from agent.hypervisors.simulated.host import Clock
    from agent.hypervisors.simulated.vm import Life


class SimulatedCommand:
    """`cat` gives back its input and `sleep` takes its time; all others end at once, see `Guest.execute`."""

    def __init__(self, name: str, life: Life, clock: Clock, argv: tuple[str, ...], *, stdin: bool) -> None:
        self._name, self._life, self._clock, self._argv = name, life, clock, argv
        self._input: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
        self._told: asyncio.Queue[Output | None] = asyncio.Queue()
        self._killed = asyncio.Event()
        self._over = asyncio.Event()
        self._exit_code: int | None = None  # stays None when the VM ends first
        if not stdin:
            self._input.put_nowait(b"")
        self._run = asyncio.create_task(self._live())

    async def output(self) -> AsyncGenerator[Output, None]:
        """See `ExecSession`."""
        while (item := await self._told.get()) is not None:
            yield item
        if self._exit_code is None:
            raise GuestError(f"{self._name} ended while `{self._argv[0]}` ran in it")

    @property
    def exit_code(self) -> int | None:
        """See `ExecSession`."""
        return self._exit_code

    async def write(self, data: bytes) -> None:
        """See `ExecSession`."""
        if data:
            await self._first_of(self._input.put(data), self._over.wait())

    async def end_input(self) -> None:
        """See `ExecSession`."""
        await self._first_of(self._input.put(b""), self._over.wait())

    async def signal(self, signal: Signal) -> None:
        """See `ExecSession`."""
        if not self._killed.is_set():
            self._exit_code = 128 + getattr(signals, f"SIG{signal}")
            self._killed.set()

    async def close(self) -> None:
        """See `ExecSession`."""
        await self.signal("KILL")
        await asyncio.wait([self._run])

    async def _live(self) -> None:
        """Run the command until it ends by itself, is killed, or its VM ends."""
        work = asyncio.create_task(self._work())
        try:
            await self._first_of(self._life.ended.wait(), self._killed.wait(), asyncio.wait([work]))
            if work.done():
                self._exit_code = work.result()
        finally:
            work.cancel()
            self._over.set()
            self._told.put_nowait(None)

    async def _work(self) -> int:
        program, *arguments = self._argv
        match program:
            case "cat":
                while data := await self._input.get():
                    self._told.put_nowait(Output("stdout", data))
            case "sleep":
                await self._clock.sleep(float(arguments[0]))
            case _:
                result = self._life.guest.execute(self._argv)
                if result.stdout:
                    self._told.put_nowait(Output("stdout", result.stdout))
                return result.exit_code
        return 0

    async def _first_of(self, *waits: Coroutine[object, object, object]) -> None:
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
