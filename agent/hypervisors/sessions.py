"""Exec sessions: commands in a guest with output as they write it, input, and signals.

A driver that supports them implements `SupportsExecSessions`. For a driver that only runs commands to their end,
`open_exec` falls back to `Hypervisor.execute`: the output then comes at the end, and there is no input.
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
"""A signal for a command in a guest, by its name: the number differs between systems."""

KILLED: Final = 128 + 9
"""The exit code of a killed command."""

OPEN_S: Final = 30.0
"""How long a guest may take to start a command."""


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of a command's output, in the order in which the command wrote to that stream."""

    stream: Literal["stdout", "stderr"]
    data: bytes


class ExecSession(Protocol):
    """A command in a guest. Every method raises `GuestError` if the guest does not answer in time.

    One task may use `output` while another uses `write`.
    """

    def output(self) -> AsyncGenerator[Output, None]:
        """Yield the command's output as it is written. Ends after the command has ended and all output was yielded."""

    @property
    def exit_code(self) -> int | None:
        """The exit code, 128 + signal for a killed command. None until known, at the latest when `output` has ended."""

    async def write(self, data: bytes) -> None:
        """Pass input to the command. Returns once the guest has accepted it, so a writer cannot outrun the reader."""

    async def end_input(self) -> None:
        """Close the command's input."""

    async def signal(self, signal: Signal) -> None:
        """Send a signal to the command and the processes it started. Does nothing if the command has ended."""

    async def close(self) -> None:
        """Kill the command if it still runs, and free its resources in the guest. Does not raise `GuestError`."""


@runtime_checkable
class SupportsExecSessions(Protocol):
    """A hypervisor whose guests' commands can have an exec session."""

    async def open_exec(self, name: str, argv: tuple[str, ...], *, stdin: bool) -> ExecSession:
        """Start a command in a guest; without `stdin`, its input is empty.

        Raises `GuestError` if the guest does not start it in time. A missing program raises nothing: the command ends
        with 127, as in a shell.
        """


async def open_exec(hypervisor: Hypervisor, name: str, argv: tuple[str, ...], *, stdin: bool) -> ExecSession:
    """Start a command in a guest, with a full session if the driver supports it. See `SupportsExecSessions`."""
    if isinstance(hypervisor, SupportsExecSessions):
        return await hypervisor.open_exec(name, argv, stdin=stdin)
    if stdin:
        raise GuestError(
            f"{hypervisor.name} cannot pass input to commands in guests", remedy="run the command without input"
        )
    return BufferedExecSession(hypervisor, name, argv)


class BufferedExecSession:
    """An `ExecSession` over `Hypervisor.execute`: the output comes after the command has ended.

    After a signal the session no longer waits for the command; the driver decides whether it runs on in the guest.
    """

    _LIMIT_S: Final = 7 * 86400.0
    """The longest time a lease may live. The caller closes the session before that."""

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
        """See `ExecSession`. Always raises."""
        raise GuestError(f"`{self._program}` in {self._name} accepts no input", remedy="run the command without input")

    async def end_input(self) -> None:
        """See `ExecSession`. Does nothing: the input is empty."""

    async def signal(self, signal: Signal) -> None:
        """See `ExecSession`. Any signal ends the wait for the command."""
        if not self._run.done():
            self._killed = self._run.cancel()

    async def close(self) -> None:
        """See `ExecSession`."""
        await self.signal("KILL")
        with contextlib.suppress(GuestError):
            await self._result()

    async def _result(self) -> ExecResult | None:
        """Return the command's result, None if it was killed."""
        await asyncio.wait([self._run])
        return None if self._killed else self._run.result()
