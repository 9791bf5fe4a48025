"""A client for commands in a leased VM: it forwards input, output and the exit code over a WebSocket."""

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

from agent.cli.client import STREAM_SILENCE_S, problem_error
from agent.cli.endpoint import AgentUnreachableError, RemoteEndpoint
from agent.cli.output import OutputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.cli.documents import ExecMessage
    from agent.cli.endpoint import LocalEndpoint

PROTOCOL: Final = "hearth.exec.v1"

_CONNECT_S: Final = 30.0
_KEEPALIVE_S: Final = 10.0
"""How often to send a pong. While the reader of our output pauses, this client receives nothing and so answers no ping;
without these pongs the agent would take it for dead."""

_CLOSE_S: Final = 2.0
_INPUT_BYTES: Final = 64 << 10
_STDIN: Final = 0
_CLOSED: Final = (
    aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR,
)  # fmt: skip


class ExecConnectionError(AgentUnreachableError):
    """The connection ended before the command did."""


def run_command(
    endpoint: LocalEndpoint | RemoteEndpoint, lease: str, argv: Sequence[str], *, with_input: bool, timeout_s: float
) -> int:
    """Run a command on our stdout and stderr, and with `with_input` on our stdin; return its exit code.

    Raises `ProblemError` for a problem that the agent reports, and `AgentUnreachableError` when the connection breaks.
    An exception in this function, also of a signal, kills the command.
    """
    request = {"argv": list(argv), "stdin": with_input, "timeout_s": timeout_s}
    thread = _ExecThread(endpoint, lease, request)
    try:
        thread.start()
        thread.ended.wait()
    finally:
        thread.cancel()
    return thread.exit_code()


class _ExecThread(threading.Thread):
    """Runs the connection in its own thread, so that a signal interrupts only a wait of the main thread."""

    def __init__(self, endpoint: LocalEndpoint | RemoteEndpoint, lease: str, request: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self._endpoint, self._lease, self._request = endpoint, lease, request
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[int] | None = None
        self._is_cancelled = False

    def run(self) -> None:
        """Exchange messages until the command has ended, or `cancel` is called."""
        try:
            asyncio.run(self._run_task())
        finally:
            self.ended.set()

    async def _run_task(self) -> None:
        self._task = asyncio.create_task(_execute(self._endpoint, self._lease, self._request))
        self._loop = asyncio.get_running_loop()
        if self._is_cancelled:
            self._task.cancel()
        await asyncio.wait([self._task])

    def cancel(self) -> None:
        """Close the connection, which kills the command if it still runs. Blocks for a few seconds at most."""
        self._is_cancelled = True
        if self._loop is not None and self._task is not None:
            with suppress(RuntimeError):  # the loop is closed, because the command has ended
                self._loop.call_soon_threadsafe(self._task.cancel)
        if self.is_alive():
            self.join(_CLOSE_S * 2)

    def exit_code(self) -> int:
        """Return the command's exit code, or raise why there is none."""
        assert self._task is not None
        try:
            return self._task.result()
        except (aiohttp.ClientError, TimeoutError) as error:
            message = f"the agent does not answer on {self._endpoint}: {error}"
            raise AgentUnreachableError(message, remedy=self._endpoint.remedy) from error


async def _execute(endpoint: LocalEndpoint | RemoteEndpoint, lease: str, request: dict[str, Any]) -> int:
    headers = {"Authorization": f"Bearer {endpoint.token}"} if endpoint.token else {}
    path = f"/v1/leases/{quote(lease, safe='')}/exec"
    async with (
        aiohttp.ClientSession(connector=_build_connector(endpoint), headers=headers) as session,
        asyncio.timeout(_CONNECT_S) as connecting,
        session.ws_connect(
            f"{_base_url(endpoint)}{path}", protocols=(PROTOCOL,), timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S)
        ) as socket,
    ):
        connecting.reschedule(None)
        keepalive = asyncio.create_task(_send_keepalives(socket))
        try:
            return await _exchange_messages(socket, request)
        finally:
            keepalive.cancel()
            await asyncio.wait([keepalive])


async def _exchange_messages(socket: aiohttp.ClientWebSocketResponse, request: dict[str, Any]) -> int:
    writer = _OutputWriter()
    await socket.send_json(request)
    while (frame := await socket.receive(STREAM_SILENCE_S)).type not in _CLOSED:
        if frame.type is aiohttp.WSMsgType.BINARY:
            await writer.write(frame.data)
        elif frame.type is aiohttp.WSMsgType.TEXT:
            message: ExecMessage = json.loads(frame.data)
            if message["type"] == "exit":
                return message["exit_code"]
            if message["type"] == "problem":
                raise problem_error(message["problem"].get("status", 0), message["problem"])
            if message["type"] == "started" and request["stdin"]:
                _start_input(socket)
    raise ExecConnectionError(
        "the agent ended the connection before the command ended", remedy="see `hearth logs`; the VM is torn down"
    )


async def _send_keepalives(socket: aiohttp.ClientWebSocketResponse) -> None:
    with suppress(aiohttp.ClientError, ConnectionError):
        while True:
            await asyncio.sleep(_KEEPALIVE_S)
            await socket.pong()


def _start_input(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Forward our stdin from a thread. A non-blocking stdin would affect other processes that share the file."""
    loop = asyncio.get_running_loop()

    def forward() -> None:
        try:
            while chunk := os.read(_STDIN, _INPUT_BYTES):
                asyncio.run_coroutine_threadsafe(socket.send_bytes(chunk), loop).result()
            asyncio.run_coroutine_threadsafe(socket.send_json({"type": "end-input"}), loop).result()
        except (OSError, RuntimeError, aiohttp.ClientError):
            return  # the command or the input has ended

    threading.Thread(target=forward, daemon=True).start()


class _OutputWriter:
    """Writes output from a thread. A reader that pauses delays the command, but not the keepalives."""

    def __init__(self) -> None:
        self._frames: queue.SimpleQueue[tuple[bytes, Future[None]]] = queue.SimpleQueue()
        threading.Thread(target=self._write_frames, daemon=True).start()

    async def write(self, frame: bytes) -> None:
        """Write a frame. Raises `BrokenPipeError` when the reader has ended, `OutputError` for other errors."""
        written: Future[None] = Future()
        self._frames.put((frame, written))
        await asyncio.wrap_future(written)

    def _write_frames(self) -> None:
        while True:
            frame, written = self._frames.get()
            written.set_running_or_notify_cancel()
            try:
                _write(frame)
            except BrokenPipeError as error:
                written.set_exception(error)
            except OSError as error:
                message = f"the command's output cannot be written: {error.strerror}"
                remedy = "free disk space, or redirect the output elsewhere"
                written.set_exception(OutputError(message, remedy=remedy))
            else:
                written.set_result(None)


def _write(frame: bytes) -> None:
    """Write one frame of output. Blocks while the reader does not read."""
    descriptor, rest = 2 if frame[0] == 2 else 1, memoryview(frame)[1:]
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _build_connector(endpoint: LocalEndpoint | RemoteEndpoint) -> aiohttp.BaseConnector:
    if not isinstance(endpoint, RemoteEndpoint):
        return aiohttp.UnixConnector(str(endpoint.path))
    is_tls = endpoint.url.startswith("https:")
    return aiohttp.TCPConnector(ssl=endpoint.build_tls_context()) if is_tls else aiohttp.TCPConnector()


def _base_url(endpoint: LocalEndpoint | RemoteEndpoint) -> str:
    return endpoint.base_url if isinstance(endpoint, RemoteEndpoint) else "http://localhost"
