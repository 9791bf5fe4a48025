"""A command in a guest that is followed by a tool that passes streams and input on: a shell there tells pid and code.

Such tools (`tart exec`, `anka run`) pass no signals, so the command says its pid, and has a session of its own where
the guest can make one: what signals it is another, short command.
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
_SCRIPT: Final = """
exec 3<&0
if command -v setsid >/dev/null; then session='setsid'
elif command -v perl >/dev/null; then session='perl -MPOSIX -e POSIX::setsid();exec(@ARGV)'
fi
$session /bin/sh -c 'printf "WORD %d\\n" $$ >&2; exec "$@"' sh "$@" <&3 3<&- &
wait $!
printf '\\nWORD %d\\n' $? >&2
"""


@dataclass(frozen=True, slots=True)
class Way:
    """How commands get into the guest of the VM `name`.

    `argv` is what one is put behind, and `env` is added to the agent's. `run` runs one to its end, in `SIGNAL_S`: it
    raises `HypervisorError` or `CommandError`, and must not start a VM that does not run.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    run: Callable[[tuple[str, ...]], Awaitable[object]]


class ShellCommand:
    """An `ExecSession` over a tool. Made by `open`."""

    def __init__(self, way: Way, command: FollowedCommand, word: bytes) -> None:
        self._way = way
        self._command = command
        self._word = word
        self._pieces = self._read()
        self._pid = ""
        self._last_words = b""
        self.exit_code: int | None = None

    @classmethod
    async def open(cls, way: Way, argv: tuple[str, ...], *, stdin: bool) -> ShellCommand:
        """Start a command. Raises `GuestError` when the guest does not in time."""
        word = secrets.token_hex(8)
        script = _SCRIPT.replace("WORD", word)
        whole = (*way.argv, "/bin/sh", "-c", script, "sh", *argv)
        command = await FollowedCommand.start(whole, stdin=stdin, env=way.env)
        session = cls(way, command, word.encode())
        try:
            async with asyncio.timeout(OPEN_S):
                await session._begin()
        except BaseException as error:
            await command.close()
            if isinstance(error, TimeoutError):
                raise GuestError(f"{way.name} did not start `{argv[0]}` in {OPEN_S:g} s") from error
            raise
        return session

    async def output(self) -> AsyncGenerator[Output, None]:
        """See `ExecSession`."""
        async for piece in self._pieces:
            yield piece
        if self.exit_code is None:
            raise GuestError(f"{self._way.name} did not answer any more: {self._words()}")

    async def write(self, data: bytes) -> None:
        """See `ExecSession`."""
        await self._command.write(data)

    async def end_input(self) -> None:
        """See `ExecSession`."""
        self._command.end_input()

    async def signal(self, signal: Signal) -> None:
        """See `ExecSession`."""
        if self.exit_code is None:
            script = f"kill -{signal} -- -{self._pid} || kill -{signal} {self._pid}"
            await self._way.run(("/bin/sh", "-c", script))

    async def close(self) -> None:
        """See `ExecSession`."""
        with contextlib.suppress(HypervisorError, CommandError):
            await self.signal("KILL")
        await self._pieces.aclose()
        await self._command.close()

    async def _begin(self) -> None:
        """Read until the command has said its pid."""
        first = await anext(self._pieces, None)
        if first is None or not self._pid:
            raise GuestError(f"{self._way.name} did not answer: {self._words()}")

    async def _read(self) -> AsyncGenerator[Output, None]:
        """Tell what comes, less what the shell says; first an empty piece, once the command has said its pid.

        A command that is quick can be read on stdout before that.
        """
        held, early = b"", b""
        async with contextlib.aclosing(self._command.output()) as pieces:
            async for stream, data in pieces:
                if stream == "stdout":
                    if self._pid:
                        yield Output("stdout", data)
                    else:
                        early += data
                    continue
                held += data
                if not self._pid:
                    begun = re.search(rb"%s (\d+)\n" % self._word, held)  # the tool may have words of its own first
                    if begun is None:
                        continue
                    self._pid, held = begun[1].decode(), held[begun.end() :]
                    yield Output("stderr", b"")
                    if early:
                        yield Output("stdout", early)
                said, held = _split(held, b"\n" + self._word)
                if said:
                    yield Output("stderr", said)
        ended = re.fullmatch(rb"\n%s (\d+)\n" % self._word, held)
        if ended is not None:
            self.exit_code = int(ended[1])
        else:
            self._last_words = held

    def _words(self) -> str:
        said = self._last_words.decode(errors="replace").strip()[-300:]
        return said or f"`{' '.join(self._way.argv)}` ended and said nothing"


def _split(data: bytes, mark: bytes) -> tuple[bytes, bytes]:
    """Return what comes before a mark, and the rest; of data without it, what surely is not its beginning."""
    at = data.find(mark)
    if at < 0:
        at = next(
            (at for at in range(max(0, len(data) - len(mark)), len(data)) if mark.startswith(data[at:])), len(data)
        )
    return data[:at], data[at:]
