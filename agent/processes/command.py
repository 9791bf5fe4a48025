"""The one way an external command is run: bounded in time and output, in a process group that never outlives it.

Tools hang, flood, ignore SIGTERM and leave children behind that hold their pipes; none of it may reach a caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import structlog

from agent.domain.errors import HearthError
from agent.processes.bounded_output import HeadTailBuffer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

log = structlog.get_logger()

TERM_GRACE_S: Final = 2.0
"""How long a command that overran its time may take to end after SIGTERM."""
DRAIN_S: Final = 1.0
"""How long pipes may stay open after the command ended: only a process that left its group can hold them then."""
REAP_S: Final = 5.0
"""How long a killed command may take to vanish. Longer means the kernel holds it, and waiting would not help."""
OUTPUT_LIMIT_BYTES: Final = 1 << 20


class CommandError(HearthError):
    """An external command could not be run as asked; the message holds the tool's own words."""

    code = "command-error"


class ProgramMissingError(CommandError):
    """The program is not installed, or may not be executed."""

    code = "program-missing"


class CommandTimeoutError(CommandError):
    """The command did not end in its time and was killed."""

    code = "command-timeout"


class CommandFailedError(CommandError):
    """The command ended with an exit code other than 0. Holds what it printed."""

    code = "command-failed"

    def __init__(self, message: str, result: CommandResult, *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.result = result


@dataclass(frozen=True, slots=True)
class Command:
    """What to run. `remedy` tells a person how to install the program; secrets never belong in `argv`."""

    argv: tuple[str, ...]
    timeout_s: float
    stdin: bytes = b""
    env: Mapping[str, str] | None = None  # added to the agent's own
    cwd: Path | None = None
    remedy: str = ""
    output_limit_bytes: int = OUTPUT_LIMIT_BYTES  # each of stdout and stderr

    @property
    def program(self) -> str:
        """The program's bare name."""
        return os.path.basename(self.argv[0])

    def __str__(self) -> str:
        text = shlex.join(self.argv)
        return text if len(text) <= 200 else f"{text[:200]}…"


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended. A negative `exit_code` is the signal that ended it; `truncated`: some output was cut."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool
    duration_s: float


class CommandOutcome(StrEnum):
    """How a command went: a closed set, used as a metric label."""

    OK = "ok"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class CommandReport:
    """What an observer is told of every command that ended."""

    program: str
    outcome: CommandOutcome
    duration_s: float


def ignore(_report: CommandReport) -> None:
    """Observe nothing."""


class CommandRunner:
    """Runs external commands, logs each and tells `observer` of it."""

    def __init__(self, observer: Callable[[CommandReport], None] = ignore) -> None:
        self._observer = observer

    async def run(
        self, command: Command, *, check: bool = True, on_output: Callable[[bytes], None] | None = None
    ) -> CommandResult:
        """Run a command to its end and return what it printed. `on_output` is shown all output as it comes.

        Whatever happens, neither the command nor a process of its group is left. Raises `ProgramMissingError`,
        `CommandTimeoutError` and, with `check`, `CommandFailedError`.
        """
        started_s = time.monotonic()
        outcome = CommandOutcome.CANCELLED
        try:
            result = await _run(command, started_s, on_output)
            outcome = CommandOutcome.FAILED if result.exit_code else CommandOutcome.OK
        except ProgramMissingError:
            outcome = CommandOutcome.MISSING
            raise
        except CommandTimeoutError:
            outcome = CommandOutcome.TIMEOUT
            raise
        finally:
            duration_s = round(time.monotonic() - started_s, 3)
            log.debug("command-ended", command=str(command), outcome=str(outcome), duration_s=duration_s)
            self._observer(CommandReport(command.program, outcome, duration_s))
        if check and result.exit_code:
            raise CommandFailedError(_failure(command, result), result)
        return result


async def _run(command: Command, started_s: float, on_output: Callable[[bytes], None] | None) -> CommandResult:
    process: _Process | None = None
    try:
        async with asyncio.timeout(command.timeout_s):
            process = await _spawn(command, on_output)
            await process.exited.wait()
    except TimeoutError:
        if process is not None:
            await process.terminate()
        said = process.last_words() if process else ""
        raise CommandTimeoutError(f"`{command}` did not end in {command.timeout_s:g} s and was killed{said}") from None
    finally:
        if process is not None:
            await process.clean_up()
    return CommandResult(
        exit_code=process.exit_code,
        stdout=process.stdout.getvalue(),
        stderr=process.stderr.getvalue(),
        truncated=process.stdout.truncated or process.stderr.truncated,
        duration_s=time.monotonic() - started_s,
    )


def _failure(command: Command, result: CommandResult) -> str:
    how = f"exit code {result.exit_code}" if result.exit_code > 0 else signal.Signals(-result.exit_code).name
    said = (result.stderr.strip() or result.stdout.strip()).decode(errors="replace")[-500:]
    return f"`{command}` ended with {how}: {said or 'it said nothing'}"


async def _spawn(command: Command, on_output: Callable[[bytes], None] | None) -> _Process:
    """Start the command in its own session. One that is cancelled while it starts is killed once it stands."""
    loop = asyncio.get_running_loop()
    starting = loop.create_task(
        loop.subprocess_exec(
            lambda: _Process(command.output_limit_bytes, on_output),
            *command.argv,
            stdin=asyncio.subprocess.PIPE if command.stdin else asyncio.subprocess.DEVNULL,
            env={**os.environ, **command.env} if command.env else None,
            cwd=command.cwd,
            start_new_session=True,
        )
    )
    try:
        _, process = await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            _, process = await starting
            await process.clean_up()
        raise
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        if command.cwd is not None and not command.cwd.is_dir():
            raise CommandError(f"`{command}` has no folder to run in: {command.cwd} does not exist") from error
        reason = "may not be executed" if isinstance(error, PermissionError) else "was not found"
        raise ProgramMissingError(f"the program {command.argv[0]} {reason}", remedy=command.remedy) from error
    except OSError as error:
        raise CommandError(f"`{command}` could not be started: {error}") from error
    process.feed(command.stdin)
    return process


class _Process(asyncio.SubprocessProtocol):
    """One running command: what it prints, when it ends, and how to end it with its whole group."""

    def __init__(self, limit_bytes: int, on_output: Callable[[bytes], None] | None) -> None:
        self._on_output = on_output
        self.stdout = HeadTailBuffer(limit_bytes)
        self.stderr = HeadTailBuffer(limit_bytes)
        self.exited = asyncio.Event()
        self._drained = asyncio.Event()
        self._open = {1, 2}
        self._transport: asyncio.SubprocessTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        (self.stdout if fd == 1 else self.stderr).write(data)
        if self._on_output is not None:
            self._on_output(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        if not self._open:
            self._drained.set()

    def process_exited(self) -> None:
        self.exited.set()

    @property
    def exit_code(self) -> int:
        """The exit code of a process that ended."""
        code = self._transport.get_returncode()
        if code is None:
            raise CommandError(f"process {self._transport.get_pid()} was killed but does not end")
        return code

    def feed(self, data: bytes) -> None:
        """Write all of stdin and close it."""
        if data:
            pipe = self._transport.get_pipe_transport(0)
            assert isinstance(pipe, asyncio.WriteTransport)
            pipe.write(data)
            pipe.close()

    def last_words(self) -> str:
        """The end of what was printed, for an error message."""
        said = (self.stderr.getvalue().strip() or self.stdout.getvalue().strip()).decode(errors="replace")
        return f"; it last said: {said[-300:]}" if said else ""

    def signal_group(self, number: signal.Signals) -> None:
        """Signal every process of the group; none left is fine. (macOS answers EPERM for a group of zombies.)"""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._transport.get_pid(), number)

    async def terminate(self) -> None:
        """Ask the group to end, giving it `TERM_GRACE_S`."""
        self.signal_group(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TERM_GRACE_S):
                await self.exited.wait()

    async def clean_up(self) -> None:
        """Kill what is left of the group, reap the command, take what is still in its pipes, and close them."""
        self.signal_group(signal.SIGKILL)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REAP_S):
                    await self.exited.wait()
                async with asyncio.timeout(DRAIN_S):
                    await self._drained.wait()
        finally:
            self.close()

    def close(self) -> None:
        """Close the pipes."""
        self._transport.close()
