"""Speaks to qemu-ga in one guest, over the Unix socket its virtio-serial port ends in.

The other end may be booting, hung, restarted or half-way through an answer to somebody else. So a connection is only
trusted after `guest-sync-delimited` has echoed a fresh number, calls go one at a time, each has a deadline, and a
connection that missed one is dropped: its late reply must not answer the next question.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
import time
from typing import TYPE_CHECKING, Any, Final

from agent.hypervisors.contract import ExecResult, GuestError
from agent.hypervisors.qemu.framing import VOID, Decoder, encode
from agent.hypervisors.qemu.sockets import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

OUTPUT_LIMIT_BYTES: Final = 1 << 20
"""What `execute` returns of each output stream at most."""
FIRST_POLL_S: Final = 0.01
LAST_POLL_S: Final = 0.5
LATENESS: Final = 0.25
"""How often a running command is asked about, since qemu-ga tells nobody when it ends: its end is noticed late by at
most a quarter of its run, within these bounds."""
PATIENCE_S: Final = 0.5
"""When to connect anew if nobody answers, doubling: a line that was dropped and taken up again before the guest
noticed, as while it was paused, can stay dead."""
REFUSAL_S: Final = 0.5
"""A shutdown that is accepted is not answered; a refusal comes within this time."""


class GuestRefusedError(GuestError):
    """The guest's agent answered that it does not do this."""


class GuestAgent:
    """The agent of the guest of one VM. Connects when first asked and again when needed."""

    def __init__(self, vm: str, socket_path: Path) -> None:
        self._vm = vm
        self._path = socket_path
        self._turn = asyncio.Lock()
        self._link: _Link | None = None

    async def connect(self) -> None:
        """Take the line up before the guest runs: one that finds nobody on it sleeps a while. Raises `OSError`."""
        self._link = await _Link.open(self._path)

    async def ping(self, *, timeout_s: float) -> None:
        """Return when the agent answers. Raises `GuestError` when it does not in time."""
        async with self._deadline(timeout_s, "a ping"):
            await self._call("guest-ping")

    async def execute(self, argv: tuple[str, ...], *, timeout_s: float, stdin: bytes = b"") -> ExecResult:
        """Run a command in the guest to its end. A shell's convention holds for signals: exit code 128 + signal.

        Raises `GuestError` when the guest cannot start it, or does not answer in time; what it started then runs on.
        """
        async with self._deadline(timeout_s, f"`{argv[0]}`"):
            arguments: dict[str, object] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
            if stdin:
                arguments["input-data"] = base64.b64encode(stdin).decode()
            started = await self._call("guest-exec", arguments)
            began_s = time.monotonic()
            while not (status := await self._call("guest-exec-status", {"pid": started["pid"]}))["exited"]:
                ran_s = time.monotonic() - began_s
                await asyncio.sleep(min(max(FIRST_POLL_S, LATENESS * ran_s), LAST_POLL_S))
            return _exec_result(status)

    async def ask(self, command: str, arguments: dict[str, object], *, timeout_s: float) -> Any:  # noqa: ANN401 - JSON
        """Return what the agent answers to one of its own commands. Raises `GuestError`."""
        async with self._deadline(timeout_s, command):
            return await self._call(command, arguments)

    async def set_clock(self, unix_ns: int, *, timeout_s: float) -> None:
        """Tell the guest what time it is. Raises `GuestError`; `GuestRefusedError` also where it has no hwclock."""
        async with self._deadline(timeout_s, "the time of now"):
            await self._call("guest-set-time", {"time": unix_ns})

    async def clock_ns(self, *, timeout_s: float) -> int:
        """Ask the guest what time it is, in nanoseconds since 1970. Raises `GuestError`."""
        async with self._deadline(timeout_s, "what time it is"):
            return int(await self._call("guest-get-time"))

    async def shut_down(self, *, timeout_s: float) -> None:
        """Ask the guest to power itself off; returns once it has taken the request. Raises `GuestError`."""
        async with self._deadline(timeout_s, "a shutdown request"):
            await self._call("guest-ping")  # so that silence after the request means consent, and not a hung guest
            with contextlib.suppress(TimeoutError, EOFError):
                async with asyncio.timeout(REFUSAL_S):
                    await self._call("guest-shutdown", {"mode": "powerdown"})

    def close(self) -> None:
        """Hang up."""
        if self._link is not None:
            self._link.close()
            self._link = None

    @contextlib.asynccontextmanager
    async def _deadline(self, timeout_s: float, what: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError:
            raise GuestError(f"the guest agent of {self._vm} did not answer {what} in {timeout_s:g} s") from None
        except (OSError, EOFError) as error:
            raise GuestError(f"the guest agent of {self._vm} cannot be reached: {error or 'it hung up'}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise GuestError(f"the guest agent of {self._vm} gave an answer that makes no sense: {error!r}") from error

    async def _call(self, command: str, arguments: dict[str, object] | None = None) -> Any:  # noqa: ANN401 - JSON
        async with self._turn:
            try:
                link = await self._synced_link()
                link.send(encode(command, arguments))
                reply = await link.receive()
            except BaseException:
                self.close()  # whatever comes on it later answers a question nobody asks any more
                raise
        if "error" in reply:
            raise GuestRefusedError(f"the guest agent of {self._vm} refused {command}: {_reason(reply['error'])}")
        return reply["return"]

    async def _synced_link(self) -> _Link:
        patience_s = PATIENCE_S
        while True:
            if self._link is None or self._link.hung_up:
                self.close()
                self._link = await _Link.open(self._path)
            link = self._link
            if link.synced:
                return link
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await link.sync()
                return link
            self.close()
            patience_s *= 2


class _Link:
    """One connection to the socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder()
        self._messages: list[dict[str, object]] = []
        self.synced = False  # what is received answers what was sent

    @classmethod
    async def open(cls, path: Path) -> _Link:
        return cls(*await asyncio.open_unix_connection(sock=connect(path)))

    @property
    def hung_up(self) -> bool:
        return self._reader.at_eof() or self._writer.is_closing()

    async def sync(self) -> None:
        number = secrets.randbits(31)
        self.send(VOID + encode("guest-sync-delimited", {"id": number}))
        while (await self.receive()).get("return") != number:
            pass  # replies to an earlier owner of this line
        self.synced = True

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def receive(self) -> dict[str, object]:
        while not self._messages:
            data = await self._reader.read(1 << 16)
            if not data:
                raise EOFError
            self._messages = self._decoder.feed(data)
        return self._messages.pop(0)

    def close(self) -> None:
        self._writer.transport.abort()


def _reason(error: object) -> object:
    return error.get("desc", error) if isinstance(error, dict) else error


def exit_code_of(status: dict[str, Any]) -> int:
    """Return the exit code of a command that has ended, as a shell tells it: 128 + signal for one that was killed."""
    return 128 + int(status["signal"]) if "signal" in status else int(status["exitcode"])


def _exec_result(status: dict[str, Any]) -> ExecResult:
    stdout, stderr = (base64.b64decode(status.get(key, "")) for key in ("out-data", "err-data"))
    cut = bool(status.get("out-truncated") or status.get("err-truncated"))
    return ExecResult(
        exit_code=exit_code_of(status),
        stdout=stdout[:OUTPUT_LIMIT_BYTES],
        stderr=stderr[:OUTPUT_LIMIT_BYTES],
        truncated=cut or max(len(stdout), len(stderr)) > OUTPUT_LIMIT_BYTES,
    )
