"""Runs external commands to their end, with limits on time and output, each in its own process group.

A tool can hang, print without end, ignore SIGTERM, or leave children that keep its pipes open. The runner handles all
of these: no caller waits longer than the limits below, and no process of the group outlives the command.
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
"""Time that a command gets to end after SIGTERM, when its timeout is over."""
DRAIN_S: Final = 1.0
"""Time that pipes may stay open after the command ended. Only a process that left the group can keep them open."""
REAP_S: Final = 5.0
"""Time that a killed command gets to end. After that the kernel blocks its end, and waiting does not help."""
OUTPUT_LIMIT_BYTES: Final = 1 << 20


class CommandError(HearthError):
    """An external command failed. The message contains the output of the tool."""

    code = "command-error"


class ProgramMissingError(CommandError):
    """The program is not installed or not executable."""

    code = "program-missing"


class CommandTimeoutError(CommandError):
    """The command did not end within its timeout and was killed."""

    code = "command-timeout"


class CommandFailedError(CommandError):
    """The command ended with an exit code other than 0. `result` contains its output."""

    code = "command-failed"

    def __init__(self, message: str, result: CommandResult, *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.result = result


@dataclass(frozen=True, slots=True)
class Command:
    """A command to run. `remedy` describes how to install the program. Never put a secret into `argv`."""

    argv: tuple[str, ...]
    timeout_s: float
    stdin: bytes = b""
    env: Mapping[str, str] | None = None  # added to the environment of the agent
    cwd: Path | None = None
    remedy: str = ""
    output_limit_bytes: int = OUTPUT_LIMIT_BYTES  # for each of stdout and stderr

    @property
    def program(self) -> str:
        """The name of the program without its path."""
        return os.path.basename(self.argv[0])

    def __str__(self) -> str:
        text = shlex.join(self.argv)
        return text if len(text) <= 200 else f"{text[:200]}…"


@dataclass(frozen=True, slots=True)
class CommandResult:
    """Result of a command. A negative `exit_code` is the signal that ended it. `truncated`: output was dropped."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool
    duration_s: float


class CommandOutcome(StrEnum):
    """Outcome of a command; a closed set, because it is a metric label."""

    OK = "ok"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class CommandReport:
    """Summary of an ended command, for the observer."""

    program: str
    outcome: CommandOutcome
    duration_s: float


def ignore_report(_report: CommandReport) -> None:
    """Do nothing: the default observer."""


class CommandRunner:
    """Runs external commands, logs each one, and reports it to `observer`."""

    def __init__(self, observer: Callable[[CommandReport], None] = ignore_report) -> None:
        self._observer = observer

    async def run(
        self, command: Command, *, check: bool = True, on_output: Callable[[bytes], None] | None = None
    ) -> CommandResult:
        """Run a command to its end and return its output. `on_output` gets all output as it arrives.

        On every exit, also on cancellation, no process of the command's group is left. Raises `ProgramMissingError`,
        `CommandTimeoutError`, another `CommandError` and, with `check`, `CommandFailedError`.
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
        output = process.last_output() if process else ""
        message = f"`{command}` did not end in {command.timeout_s:g} s and was killed{output}"
        raise CommandTimeoutError(message) from None
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
    output = (result.stderr.strip() or result.stdout.strip()).decode(errors="replace")[-500:]
    return f"`{command}` ended with {how}: {output or 'no output'}"


async def _spawn(command: Command, on_output: Callable[[bytes], None] | None) -> _Process:
    """Start the command in its own session. If cancelled during the start, wait for it and kill the command."""
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
            raise CommandError(f"`{command}` cannot be started: its folder {command.cwd} does not exist") from error
        # A name without a path gives PermissionError also if a folder of PATH is not readable.
        found = isinstance(error, PermissionError) and "/" in command.argv[0]
        reason = "is not executable" if found else "was not found"
        raise ProgramMissingError(f"program {command.argv[0]} {reason}", remedy=command.remedy) from error
    except OSError as error:
        raise CommandError(f"`{command}` cannot be started: {error}") from error
    process.feed(command.stdin)
    return process


class _Process(asyncio.SubprocessProtocol):
    """One running command: its output, its exit, and the signals to its process group."""

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
        """The exit code of the ended process. Raises `CommandError` if it still runs."""
        code = self._transport.get_returncode()
        if code is None:
            raise CommandError(f"process {self._transport.get_pid()} was killed, but has not ended within {REAP_S:g} s")
        return code

    def feed(self, data: bytes) -> None:
        """Write all of stdin and close it."""
        if data:
            pipe = self._transport.get_pipe_transport(0)
            assert isinstance(pipe, asyncio.WriteTransport)
            pipe.write(data)
            pipe.close()

    def last_output(self) -> str:
        """Return the end of the output, for an error message."""
        output = (self.stderr.getvalue().strip() or self.stdout.getvalue().strip()).decode(errors="replace")
        return f"; its last output: {output[-300:]}" if output else ""

    def signal_group(self, number: signal.Signals) -> None:
        """Signal every process of the group, if any is left. macOS reports EPERM for a group of zombies."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._transport.get_pid(), number)

    async def terminate(self) -> None:
        """Send SIGTERM to the group, and wait up to `TERM_GRACE_S` for the command to end."""
        self.signal_group(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TERM_GRACE_S):
                await self.exited.wait()

    async def clean_up(self) -> None:
        """Kill the rest of the group, reap the command, read the rest of its output, and close the pipes."""
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
        self._transport.close()
