"""An exec session over a tool that passes output and input on but no signals, such as `tart exec` and `anka run`.

A shell in the guest reports the command's pid and exit code on stderr, after a random word. It gives the command a
session of its own if the guest has a program for that. A signal is sent by another, short command.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.hypervisors.contract import GuestError, HypervisorError
from agent.hypervisors.sessions import OPEN_S, Output
from agent.processes.command import CommandError
from agent.processes.followed_command import FollowedCommand

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from agent.hypervisors.sessions import Signal

SIGNAL_S: Final = 10.0
_EARLY_LIMIT_BYTES: Final = 1 << 20
"""How much a tool and its guest may print before the pid of the command."""
_CODE_BYTES: Final = len(" 255\n")
_SCRIPT: Final = """
exec 3>&2 2>/dev/null
if command -v setsid >/dev/null; then session='setsid'
elif command -v perl >/dev/null; then session='perl -MPOSIX -e POSIX::setsid();exec(@ARGV)'
fi
(exec $session /bin/sh -c 'printf "WORD %d\\n" $$ >&2; exec "$@"' sh "$@" 2>&3 3>&-)
code=$?
printf '\\036WORD\\n'
printf '\\036WORD %d\\n' "$code" >&3
"""
"""Runs the command in the foreground and marks the end of both streams: a process that it left running may hold them
open, so that the tool does not end. A shell without job control starts a background command with SIGINT and SIGQUIT
ignored. The shell reports a command that a signal killed on its own stderr, which is closed; without the subshell, dash
would report it on that of the command."""


@dataclass(frozen=True, slots=True)
class GuestTransport:
    """How to run commands in the guest of the VM `name`.

    A command follows `argv`, and `env` is added to the agent's environment. `run` runs a command to its end, in
    `SIGNAL_S`: it raises `HypervisorError` or `CommandError`, and must not start a VM that does not run.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    run: Callable[[tuple[str, ...]], Awaitable[object]]


class ShellExecSession:
    """An `ExecSession` over a tool. Made by `open`."""

    def __init__(self, transport: GuestTransport, command: FollowedCommand, word: bytes) -> None:
        self._transport = transport
        self._command = command
        self._word = word
        self._pieces = self._read()
        self._pid = ""
        self._last_stderr = b""
        self.exit_code: int | None = None

    @classmethod
    async def open(cls, transport: GuestTransport, argv: tuple[str, ...], *, stdin: bool) -> ShellExecSession:
        """Start a command. Raises `GuestError` if the guest does not start it in `OPEN_S`."""
        word = secrets.token_hex(8)
        script = _SCRIPT.replace("WORD", word)
        whole = (*transport.argv, "/bin/sh", "-c", script, "sh", *argv)
        command = await FollowedCommand.start(whole, stdin=stdin, env=transport.env)
        session = cls(transport, command, word.encode())
        try:
            async with asyncio.timeout(OPEN_S):
                await session._wait_for_pid()
        except BaseException as error:
            await command.close()
            if isinstance(error, TimeoutError):
                raise GuestError(f"{transport.name} did not start `{argv[0]}` in {OPEN_S:g} s") from error
            raise
        return session

    async def output(self) -> AsyncGenerator[Output, None]:
        """See `ExecSession`."""
        async for piece in self._pieces:
            if piece.data:
                yield piece
        if self.exit_code is None:
            raise GuestError(f"{self._transport.name} stopped answering: {self._tool_message()}")

    async def write(self, data: bytes) -> None:
        """See `ExecSession`."""
        await self._command.write(data)

    async def end_input(self) -> None:
        """See `ExecSession`."""
        self._command.end_input()

    async def signal(self, signal: Signal) -> None:
        """See `ExecSession`."""
        if self.exit_code is None:
            script = f"kill -s {signal} -- -{self._pid} || kill -s {signal} {self._pid}"  # dash: no `kill -INT -- -PID`
            await self._transport.run(("/bin/sh", "-c", script))

    async def close(self) -> None:
        """See `ExecSession`."""
        with contextlib.suppress(HypervisorError, CommandError):
            await self.signal("KILL")
        await self._pieces.aclose()
        await self._command.close()

    async def _wait_for_pid(self) -> None:
        first = await anext(self._pieces, None)
        if first is None or not self._pid:
            raise GuestError(f"{self._transport.name} did not answer: {self._tool_message()}")

    async def _read(self) -> AsyncGenerator[Output, None]:
        """Yield the output without the shell's reports; first an empty piece, once the pid is known.

        Output of a short command on stdout can arrive before the pid on stderr. Ends when the shell has marked the end
        of both streams, or when the tool ends.
        """
        mark = b"\036" + self._word
        stdout, stderr, held, early = _MarkedStream(mark), _MarkedStream(mark), b"", b""
        async with contextlib.aclosing(self._command.output()) as pieces:
            async for stream, data in pieces:
                if stream == "stdout":
                    early += stdout.feed(data)
                elif self._pid:
                    yield Output("stderr", stderr.feed(data))
                else:
                    held += data
                    if begun := re.search(rb"%s (\d{1,20})\n" % self._word, held):  # the tool may print first
                        self._pid, first = begun[1].decode(), held[begun.end() :]
                        yield Output("stderr", b"")
                        yield Output("stderr", stderr.feed(first))
                if self._pid and early:
                    yield Output("stdout", early)
                    early = b""
                if not self._pid and len(held) + len(early) > _EARLY_LIMIT_BYTES:
                    break
                if stdout.is_marked and (ended := re.match(rb"%s (\d{1,3})\n" % mark, stderr.rest)):
                    self.exit_code = int(ended[1])
                    return
        self._last_stderr = held if not self._pid else stderr.rest

    def _tool_message(self) -> str:
        message = self._last_stderr.decode(errors="replace").strip()[-300:]
        return message or f"`{' '.join(self._transport.argv)}` ended without a message"


class _MarkedStream:
    """A stream up to a mark. `rest` begins with the mark, or with the bytes that may be its beginning."""

    def __init__(self, mark: bytes) -> None:
        self._mark = mark
        self.rest = b""

    @property
    def is_marked(self) -> bool:
        """Whether the mark was read."""
        return self.rest.startswith(self._mark)

    def feed(self, data: bytes) -> bytes:
        """Return the output that `data` completes. Drops what follows the mark, except its line."""
        before, self.rest = (b"", self.rest + data) if self.is_marked else _split(self.rest + data, self._mark)
        if self.is_marked:
            self.rest = self.rest[: len(self._mark) + _CODE_BYTES]
        return before


def _split(data: bytes, mark: bytes) -> tuple[bytes, bytes]:
    """Split before `mark`. Without a mark in `data`, split before the bytes that may be its beginning."""
    at = data.find(mark)
    if at < 0:
        at = next(
            (at for at in range(max(0, len(data) - len(mark)), len(data)) if mark.startswith(data[at:])), len(data)
        )
    return data[:at], data[at:]
