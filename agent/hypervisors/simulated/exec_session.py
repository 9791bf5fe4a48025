"""An exec session in a simulated guest; see `ExecSession`."""

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
    from agent.hypervisors.simulated.vm import SimulatedProcess


class SimulatedExecSession:
    """`cat` returns its input and `sleep` waits; all other commands end immediately, see `SimulatedGuest.execute`."""

    def __init__(
        self, name: str, process: SimulatedProcess, clock: Clock, argv: tuple[str, ...], *, stdin: bool
    ) -> None:
        self._name, self._process, self._clock, self._argv = name, process, clock, argv
        self._input: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
        self._output: asyncio.Queue[Output | None] = asyncio.Queue()
        self._killed = asyncio.Event()
        self._ended = asyncio.Event()
        self._exit_code: int | None = None  # stays None if the VM ends first
        if not stdin:
            self._input.put_nowait(b"")
        self._task = asyncio.create_task(self._run())

    async def output(self) -> AsyncGenerator[Output, None]:
        """See `ExecSession`."""
        while (item := await self._output.get()) is not None:
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
            await self._wait_for_first(self._input.put(data), self._ended.wait())

    async def end_input(self) -> None:
        """See `ExecSession`."""
        await self._wait_for_first(self._input.put(b""), self._ended.wait())

    async def signal(self, signal: Signal) -> None:
        """See `ExecSession`."""
        if not self._killed.is_set():
            self._exit_code = 128 + getattr(signals, f"SIG{signal}")
            self._killed.set()

    async def close(self) -> None:
        """See `ExecSession`."""
        await self.signal("KILL")
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        """Run the command until it ends, is killed, or its VM ends."""
        work = asyncio.create_task(self._execute())
        try:
            await self._wait_for_first(self._process.ended.wait(), self._killed.wait(), asyncio.wait([work]))
            if work.done():
                self._exit_code = work.result()
        finally:
            work.cancel()
            self._ended.set()
            self._output.put_nowait(None)

    async def _execute(self) -> int:
        program, *arguments = self._argv
        match program:
            case "cat":
                while data := await self._input.get():
                    self._output.put_nowait(Output("stdout", data))
            case "sleep":
                await self._clock.sleep(float(arguments[0]))
            case _:
                result = self._process.guest.execute(self._argv)
                if result.stdout:
                    self._output.put_nowait(Output("stdout", result.stdout))
                if result.stderr:
                    self._output.put_nowait(Output("stderr", result.stderr))
                return result.exit_code
        return 0

    async def _wait_for_first(self, *waits: Coroutine[object, object, object]) -> None:
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
