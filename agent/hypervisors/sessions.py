"""Commands in a guest that are followed while they run: output as it comes, input as it is given, an end at any time.

A driver that can do this implements `StreamsExec`. For one that only runs commands to their end, `open_exec` falls back
on that: the output then comes at the end, and there is no input.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, runtime_checkable

from agent.hypervisors.contract import GuestError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agent.hypervisors.contract import ExecResult, Hypervisor

Signal = Literal["INT", "TERM", "KILL"]
"""What a command in a guest can be sent, by the name every system knows it by."""

KILLED: Final = 128 + 9
"""The exit code of a command that was killed."""

OPEN_S: Final = 30.0
"""How long a guest may take to start a command."""


@dataclass(frozen=True, slots=True)
class Output:
    """Some of what a command wrote, in the order in which it wrote to that stream."""

    stream: Literal["stdout", "stderr"]
    data: bytes


class ExecSession(Protocol):
    """One command in a guest. Every method raises `GuestError` when the guest does not answer in time.

    `output` and `write` may be used at the same time, each by one task.
    """

    def output(self) -> AsyncGenerator[Output, None]:
        """Tell what the command writes, as it writes it. Ends when the command has ended and all of it is told."""

    @property
    def exit_code(self) -> int | None:
        """The exit code, 128 + signal for one that was killed. Known once `output` has ended, else it may be None."""

    async def write(self, data: bytes) -> None:
        """Give the command input. Returns once the guest has taken it, so a writer cannot outrun the reader."""

    async def end_input(self) -> None:
        """Let the command read the end of its input."""

    async def signal(self, signal: Signal) -> None:
        """Send a signal to the command and what it has started. One that has ended already is left alone."""

    async def close(self) -> None:
        """Kill the command if it still runs, and free what the guest keeps for it. Never raises `GuestError`."""


@runtime_checkable
class StreamsExec(Protocol):
    """A hypervisor whose guests' commands can be followed."""

    async def open_exec(self, name: str, argv: tuple[str, ...], *, stdin: bool) -> ExecSession:
        """Start a command in a guest; without `stdin` it reads the end of its input at once.

        Raises `GuestError` when the guest does not start it in time. A program that is not there is no such error: the
        command ends with 127, as in a shell.
        """


async def open_exec(hypervisor: Hypervisor, name: str, argv: tuple[str, ...], *, stdin: bool) -> ExecSession:
    """Start a command in a guest by the best means its hypervisor has. See `StreamsExec.open_exec`."""
    if isinstance(hypervisor, StreamsExec):
        return await hypervisor.open_exec(name, argv, stdin=stdin)
    if stdin:
        raise GuestError(f"{hypervisor.name} gives commands in guests no input", remedy="run it without input")
    return RunToEnd(hypervisor, name, argv)


class RunToEnd:
    """An `ExecSession` over `Hypervisor.execute`: what the command wrote comes when it has ended.

    A killed command is no longer waited for; whether it runs on in the guest is the driver's affair.
    """

    _LIMIT_S: Final = 7 * 86400.0
    """As long as a lease may live: who opened the session ends it sooner."""

    def __init__(self, hypervisor: Hypervisor, name: str, argv: tuple[str, ...]) -> None:
        self._name, self._program = name, argv[0]
        self._run: asyncio.Task[ExecResult] = asyncio.create_task(
            hypervisor.execute(name, argv, timeout_s=self._LIMIT_S), name=f"exec:{name}"
        )
        self._killed = False

    async def output(self) -> AsyncGenerator[Output, None]:
        """See `ExecSession`."""
        result = await self._result()
        if result is not None:
            for stream, data in (("stdout", result.stdout), ("stderr", result.stderr)):
                if data:
                    yield Output(stream, data)  # type: ignore[arg-type]  # both are names of streams

    @property
    def exit_code(self) -> int | None:
        """See `ExecSession`."""
        if self._killed:
            return KILLED
        return self._run.result().exit_code if self._run.done() else None

    async def write(self, data: bytes) -> None:
        """See `ExecSession`. There is no input to give."""
        raise GuestError(f"`{self._program}` in {self._name} takes no input", remedy="run it without input")

    async def end_input(self) -> None:
        """See `ExecSession`. It is at its end from the start."""

    async def signal(self, signal: Signal) -> None:
        """See `ExecSession`. Whatever the signal, nobody waits for the command any more."""
        if not self._run.done():
            self._killed = self._run.cancel()

    async def close(self) -> None:
        """See `ExecSession`."""
        await self.signal("KILL")
        with contextlib.suppress(GuestError):
            await self._result()

    async def _result(self) -> ExecResult | None:
        """Return how it ended, or None when it was killed."""
        await asyncio.wait([self._run])
        return None if self._killed else self._run.result()
