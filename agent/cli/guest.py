"""A command in the guest of a leased VM: its output as it comes, our input if it wants it, its exit code."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import aiohttp

from agent.cli.client import STREAM_SILENCE_S, problem_of
from agent.cli.place import AgentUnreachableError, Remote
from agent.cli.streams import OutputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.cli.place import Local

PROTOCOL: Final = "hearth.exec.v1"

_CONNECT_S: Final = 30.0
_ALIVE_S: Final = 10.0
"""How often the agent is told that we live, which it cannot know of a client that takes nothing since its reader
pauses."""

_CLOSE_S: Final = 2.0
_INPUT_BYTES: Final = 64 << 10
_STDIN: Final = 0
_HUNG_UP: Final = (
    aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR,
)  # fmt: skip


class GuestCommandError(AgentUnreachableError):
    """The connection ended before the command did."""


def run(place: Local | Remote, lease: str, argv: Sequence[str], *, with_input: bool, timeout_s: float) -> int:
    """Run a command on our stdout and stderr, and with `with_input` on our stdin; return its exit code.

    Raises `ProblemError` for what the agent tells, `AgentUnreachableError` when it goes away. Whatever ends this early,
    a signal too, kills the command.
    """
    wanted = {"argv": list(argv), "stdin": with_input, "timeout_s": timeout_s}
    talk = _Talk(place, lease, wanted)
    try:
        talk.start()
        talk.ended.wait()
    finally:
        talk.cut_off()
    return talk.exit_code()


class _Talk(threading.Thread):
    """Talks to the agent, in a thread of its own: so a signal meets the main thread waiting, and nothing half-done."""

    def __init__(self, place: Local | Remote, lease: str, wanted: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self._place, self._lease, self._wanted = place, lease, wanted
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[int] | None = None
        self._cut = False

    def run(self) -> None:
        """Talk until the command has ended, or `cut_off` is called."""
        try:
            asyncio.run(self._until_ended())
        finally:
            self.ended.set()

    async def _until_ended(self) -> None:
        self._task = asyncio.create_task(_follow(self._place, self._lease, self._wanted))
        self._loop = asyncio.get_running_loop()
        if self._cut:
            self._task.cancel()
        await asyncio.wait([self._task])

    def cut_off(self) -> None:
        """End the talk, if it goes on: that kills the command. Returns when it has ended, or after some seconds."""
        self._cut = True
        if self._loop is not None and self._task is not None:
            with suppress(RuntimeError):  # the loop is closed: it has ended
                self._loop.call_soon_threadsafe(self._task.cancel)
        if self.is_alive():
            self.join(_CLOSE_S * 2)

    def exit_code(self) -> int:
        """Return the command's exit code, or raise why there is none."""
        assert self._task is not None
        try:
            return self._task.result()
        except (aiohttp.ClientError, TimeoutError) as error:
            message = f"the agent does not answer on {self._place}: {error}"
            raise AgentUnreachableError(message, remedy=self._place.remedy) from error


async def _follow(place: Local | Remote, lease: str, wanted: dict[str, Any]) -> int:
    headers = {"Authorization": f"Bearer {place.token}"} if place.token else {}
    path = f"/v1/leases/{quote(lease, safe='')}/exec"
    async with (
        aiohttp.ClientSession(connector=_connector(place), headers=headers) as session,
        asyncio.timeout(_CONNECT_S) as connecting,
        session.ws_connect(
            f"{_base(place)}{path}", protocols=(PROTOCOL,), timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S)
        ) as socket,
    ):
        connecting.reschedule(None)
        living = asyncio.create_task(_live(socket))
        try:
            return await _talk(socket, wanted)
        finally:
            living.cancel()
            await asyncio.wait([living])


async def _talk(socket: aiohttp.ClientWebSocketResponse, wanted: dict[str, Any]) -> int:
    printer = _Printer()
    await socket.send_json(wanted)
    while (message := await socket.receive(STREAM_SILENCE_S)).type not in _HUNG_UP:
        if message.type is aiohttp.WSMsgType.BINARY:
            await printer.write(message.data)
        elif message.type is aiohttp.WSMsgType.TEXT:
            told = json.loads(message.data)
            if told["type"] == "exit":
                return int(told["exit_code"])
            if told["type"] == "problem":
                raise problem_of(told["problem"].get("status", 0), told["problem"])
            if told["type"] == "started" and wanted["stdin"]:
                _pump_input(socket)
    raise GuestCommandError("the agent ended before the command did", remedy="see `hearth logs`; the VM is torn down")


async def _live(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Say that we live, as long as the connection does."""
    with suppress(aiohttp.ClientError, ConnectionError):
        while True:
            await asyncio.sleep(_ALIVE_S)
            await socket.pong()


def _pump_input(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Send what comes on our stdin, from a thread: no terminal, file or pipe of others has to be made non-blocking."""
    loop = asyncio.get_running_loop()

    def pump() -> None:
        try:
            while chunk := os.read(_STDIN, _INPUT_BYTES):
                asyncio.run_coroutine_threadsafe(socket.send_bytes(chunk), loop).result()
            asyncio.run_coroutine_threadsafe(socket.send_json({"type": "end-input"}), loop).result()
        except (OSError, RuntimeError, aiohttp.ClientError):
            return  # the command has ended, or our input has

    threading.Thread(target=pump, daemon=True).start()


class _Printer:
    """Writes output where it belongs, from a thread: a reader that pauses holds up the command, and not our talk."""

    def __init__(self) -> None:
        self._frames: queue.SimpleQueue[tuple[bytes, Future[None]]] = queue.SimpleQueue()
        threading.Thread(target=self._print, daemon=True).start()

    async def write(self, frame: bytes) -> None:
        """Write a frame. Raises `BrokenPipeError` when the reader has gone, `OutputError` when it cannot be written."""
        written: Future[None] = Future()
        self._frames.put((frame, written))
        await asyncio.wrap_future(written)

    def _print(self) -> None:
        while True:
            frame, written = self._frames.get()
            written.set_running_or_notify_cancel()
            try:
                _write(frame)
            except BrokenPipeError as error:
                written.set_exception(error)
            except OSError as error:
                message = f"what the command writes cannot be written here: {error.strerror}"
                written.set_exception(OutputError(message, remedy="make room, or send it elsewhere"))
            else:
                written.set_result(None)


def _write(frame: bytes) -> None:
    """Write one frame of output. Blocks as long as our reader does."""
    descriptor, rest = 2 if frame[0] == 2 else 1, memoryview(frame)[1:]
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _connector(place: Local | Remote) -> aiohttp.BaseConnector:
    if not isinstance(place, Remote):
        return aiohttp.UnixConnector(str(place.path))
    return aiohttp.TCPConnector(ssl=place.tls()) if place.url.startswith("https:") else aiohttp.TCPConnector()


def _base(place: Local | Remote) -> str:
    return place.base if isinstance(place, Remote) else "http://localhost"
