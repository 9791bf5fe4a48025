"""The client of qemu-ga in one guest, over the Unix socket of its virtio-serial port.

The other end may be booting, hung, restarted, or in the middle of an answer to an earlier client. So the client uses a
connection only after `guest-sync-delimited` has echoed a fresh number, and runs one call at a time, each with a
deadline. It drops a connection that missed a deadline: the late reply must not answer the next call. Whatever the guest
answers, a call returns or raises `GuestError`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from agent.hypervisors.contract import GuestError
from agent.hypervisors.qemu.agent_messages import (
    RESET,
    Decoder,
    encode,
    read_exec_result,
    read_pid,
    read_time,
)
from agent.hypervisors.qemu.sockets import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from agent.hypervisors.contract import ExecResult

T = TypeVar("T")

FIRST_POLL_S: Final = 0.01
LAST_POLL_S: Final = 0.5
POLL_FRACTION: Final = 0.25
"""When to poll a running command next, as a fraction of its run time so far, within these bounds: qemu-ga sends no
event when a command ends. The driver notices the end late by at most this fraction."""
FIRST_SYNC_S: Final = 0.5
"""How long to wait for the sync before connecting again; doubles each time. A line that was closed and opened while the
guest did not run, as during a pause, can stay dead."""
REFUSAL_S: Final = 0.5
"""How long to wait for the refusal of a shutdown. An accepted shutdown is not answered."""


class GuestRefusedError(GuestError):
    """The guest's agent refused the command."""


class GuestAgent:
    """The agent of one VM's guest. Connects at the first call, and again when the connection is lost."""

    def __init__(self, vm: str, socket_path: Path) -> None:
        self._vm = vm
        self._path = socket_path
        self._call_lock = asyncio.Lock()
        self._link: _Link | None = None

    async def connect(self) -> None:
        """Connect before the guest runs: an agent that finds its port closed sleeps a while. Raises `OSError`."""
        self._link = await _Link.open(self._path)

    async def ping(self, *, timeout_s: float) -> None:
        """Return when the agent answers. Raises `GuestError` if it does not in time."""
        async with self._deadline(timeout_s, "a ping"):
            await self._call("guest-ping")

    async def execute(self, argv: tuple[str, ...], *, timeout_s: float, stdin: bytes = b"") -> ExecResult:
        """Run a command in the guest to its end. The exit code of a killed command is 128 + signal, as in a shell.

        Raises `GuestError` if the guest cannot start it, or does not answer in time; a started command then runs on.
        """
        async with self._deadline(timeout_s, f"`{argv[0]}`"):
            arguments: dict[str, object] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
            if stdin:
                arguments["input-data"] = base64.b64encode(stdin).decode()
            pid = read_pid(await self._call("guest-exec", arguments))
            began_s = time.monotonic()
            while (result := read_exec_result(await self._call("guest-exec-status", {"pid": pid}))) is None:
                ran_s = time.monotonic() - began_s
                await asyncio.sleep(min(max(FIRST_POLL_S, POLL_FRACTION * ran_s), LAST_POLL_S))
            return result

    async def request(
        self, command: str, arguments: dict[str, object], read: Callable[[object], T], *, timeout_s: float
    ) -> T:
        """Run one of the agent's own commands and return its answer as `read` reads it. Raises `GuestError`."""
        async with self._deadline(timeout_s, command):
            return read(await self._call(command, arguments))

    async def set_clock(self, unix_ns: int, *, timeout_s: float) -> None:
        """Set the guest's clock. Raises `GuestError`; `GuestRefusedError` also if the guest has no hwclock."""
        async with self._deadline(timeout_s, "the request to set its clock"):
            await self._call("guest-set-time", {"time": unix_ns})

    async def clock_ns(self, *, timeout_s: float) -> int:
        """Return the guest's time, in nanoseconds since 1970. Raises `GuestError`."""
        async with self._deadline(timeout_s, "the request for its time"):
            return read_time(await self._call("guest-get-time"))

    async def shut_down(self, *, timeout_s: float) -> None:
        """Request the guest to power itself off. Returns once it accepted the request. Raises `GuestError`."""
        async with self._deadline(timeout_s, "a shutdown request"):
            await self._call("guest-ping")  # rules out a hung guest: then no answer to the request means consent
            with contextlib.suppress(TimeoutError, EOFError):
                async with asyncio.timeout(REFUSAL_S):
                    await self._call("guest-shutdown", {"mode": "powerdown"})

    def close(self) -> None:
        """Disconnect."""
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
            raise GuestError(
                f"the guest agent of {self._vm} cannot be reached: {error or 'it disconnected'}"
            ) from error
        except (KeyError, ValueError, RecursionError) as error:
            raise GuestError(f"the guest agent of {self._vm} sent an invalid answer: {error!r}") from error

    async def _call(self, command: str, arguments: dict[str, object] | None = None) -> Any:  # noqa: ANN401 - JSON
        async with self._call_lock:
            try:
                link = await self._synced_link()
                link.send(encode(command, arguments))
                reply = await link.receive()
            except BaseException:
                self.close()  # a late reply on this connection must not answer the next call
                raise
        if "error" in reply:
            raise GuestRefusedError(f"the guest agent of {self._vm} refused {command}: {_reason(reply['error'])}")
        return reply["return"]

    async def _synced_link(self) -> _Link:
        sync_s = FIRST_SYNC_S
        while True:
            if self._link is None or self._link.is_closed:
                self.close()
                self._link = await _Link.open(self._path)
            link = self._link
            if link.is_synced:
                return link
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(sync_s):
                    await link.sync()
                return link
            self.close()
            sync_s *= 2


class _Link:
    """One connection to the socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder()
        self._messages: list[dict[str, object]] = []
        self.is_synced = False  # the next reply answers the next request

    @classmethod
    async def open(cls, path: Path) -> _Link:
        return cls(*await asyncio.open_unix_connection(sock=connect(path)))

    @property
    def is_closed(self) -> bool:
        return self._reader.at_eof() or self._writer.is_closing()

    async def sync(self) -> None:
        number = secrets.randbits(31)
        self.send(RESET + encode("guest-sync-delimited", {"id": number}))
        while (await self.receive()).get("return") != number:
            pass  # a reply to an earlier client of this port
        self.is_synced = True

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
