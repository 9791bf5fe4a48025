"""One exec stream: it connects a WebSocket and a command in a guest, and ends both when either ends."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Final

from aiohttp import WSCloseCode, WSMsgType, web
from pydantic import BaseModel, TypeAdapter

from agent.api.exec_schemas import CONTROL, ExecEndInput, ExecExit, ExecFailed, ExecStart, ExecStarted
from agent.api.handler_context import raise_field_errors
from agent.api.problems import RequestError, problem_of
from agent.domain.errors import HearthError
from agent.hypervisors.contract import GuestError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from aiohttp import WSMessage

    from agent.hypervisors.sessions import ExecSession

PROTOCOL: Final = "hearth.exec.v1"
STDOUT: Final = b"\x01"
STDERR: Final = b"\x02"
"""The first byte of a binary frame from the agent names the stream of the other bytes."""

MAX_FRAME_BYTES: Final = 256 << 10
QUEUED_FRAMES: Final = 8
"""Frames of input that are read ahead of the command. A client that sends more waits, and so do its signals."""
FIRST_MESSAGE_S: Final = 10.0
PING_S: Final = 15.0
"""Pings show proxies and clients that the connection is alive."""
SILENCE_S: Final = 30.0
"""A client that neither reads nor sends for this time is disconnected, and its command killed. A client with a paused
reader still answers pings; its command waits until it reads again."""
CLOSE_S: Final = 1.0

_START: Final = TypeAdapter(ExecStart)
_PINGS: Final = (WSMsgType.PING, WSMsgType.PONG)
_CLOSED: Final = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR)


class ExecStream:
    """Runs one command for one client. `open_session` starts the command that the client names."""

    def __init__(self, socket: web.WebSocketResponse, *, request_id: str) -> None:
        self._socket = socket
        self._request_id = request_id
        self._input: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUED_FRAMES)
        self._request_error: RequestError | None = None
        self._is_command_blocking = False
        """Whether the command does not read its input. Then the client's messages stay unread."""
        self._sending: asyncio.Timeout | None = None

    async def serve(self, open_session: Callable[[ExecStart], AbstractAsyncContextManager[ExecSession]]) -> int | None:
        """Serve until the command ends or the client disconnects. Return the exit code if there is one."""
        try:
            start = await self._receive_start()
            if start is None:
                return None
            async with open_session(start) as session:
                await self._send_document(ExecStarted())
                exit_code = await self._send_output(session, start)
        except HearthError as error:
            await self._send_document(ExecFailed(problem=problem_of(error, request_id=self._request_id)))
            await self._socket.close(code=WSCloseCode.POLICY_VIOLATION, message=error.code.encode())
            return None
        if exit_code is not None:
            await self._send_document(ExecExit(exit_code=exit_code))
        await self._socket.close()
        return exit_code

    async def _receive_start(self) -> ExecStart | None:
        """Return the command to run, or None if the client disconnected."""
        try:
            async with asyncio.timeout(FIRST_MESSAGE_S):
                while (message := await self._socket.receive()).type in _PINGS:
                    await self._answer_ping(message)
        except TimeoutError:
            raise RequestError(
                f"the client sent no command within {FIRST_MESSAGE_S:g} s", remedy='send {"argv": [...]} first'
            ) from None
        if message.type in _CLOSED:
            return None
        if message.type is not WSMsgType.TEXT:
            raise RequestError("the first message names no command", remedy='send {"argv": [...]} as text first')
        with raise_field_errors("message"):
            return _START.validate_json(message.data)

    async def _send_output(self, session: ExecSession, start: ExecStart) -> int | None:
        """Send the output of the command. Return its exit code, also if it was killed after the client disconnected."""
        tasks = (self._receive(session), self._feed(session), self._ping())
        helpers = [asyncio.create_task(work) for work in tasks]
        try:
            async with asyncio.timeout(start.timeout_s), aclosing(session.output()) as output:
                async for item in output:
                    await self._send((STDOUT if item.stream == "stdout" else STDERR) + item.data)
        except TimeoutError:
            raise GuestError(
                f"`{start.argv[0]}` did not end within {start.timeout_s:g} s and was killed",
                remedy="set a longer timeout_s",
            ) from None
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.wait(helpers)
        if self._request_error is not None:
            raise self._request_error
        return session.exit_code

    async def _receive(self, session: ExecSession) -> None:
        """Handle the client's messages. Kill the command if it disconnects or sends an invalid one."""
        with suppress(GuestError):  # the reader of the output raises the same error
            try:
                while (message := await self._socket.receive()).type not in _CLOSED:
                    await self._handle_message(message, session)
                    self._extend_send_timeout()
            except RequestError as error:
                self._request_error = error
            await session.signal("KILL")

    async def _handle_message(self, message: WSMessage, session: ExecSession) -> None:
        if message.type in _PINGS:
            await self._answer_ping(message)
            return
        if message.type is WSMsgType.BINARY:
            await self._forward(self._input.put(message.data))
            return
        with raise_field_errors("message"):
            control = CONTROL.validate_json(message.data)
        await self._forward(
            self._input.put(None) if isinstance(control, ExecEndInput) else session.signal(control.signal)
        )

    async def _answer_ping(self, message: WSMessage) -> None:
        """Answer a ping. A pong needs no answer."""
        if message.type is WSMsgType.PING:
            await self._socket.pong(message.data)

    async def _feed(self, session: ExecSession) -> None:
        """Write the client's input to the command."""
        with suppress(GuestError):  # the reader of the output raises the same error
            while (data := await self._input.get()) is not None:
                await session.write(data)
            await session.end_input()

    async def _ping(self) -> None:
        with suppress(ConnectionError):
            while True:
                await asyncio.sleep(PING_S)
                await self._socket.ping()

    async def _send_document(self, document: BaseModel) -> None:
        """Send a document if the client is connected."""
        if not self._socket.closed:
            await self._send(document.model_dump_json(exclude_none=True))

    async def _send(self, data: bytes | str) -> None:
        try:
            async with asyncio.timeout(self._send_timeout_s()) as self._sending:
                await (self._socket.send_bytes(data) if isinstance(data, bytes) else self._socket.send_str(data))
        except TimeoutError:
            raise ConnectionResetError("the client neither reads nor sends") from None
        finally:
            self._sending = None

    async def _forward(self, work: Awaitable[None]) -> None:
        """Forward input or a signal to the command, which may block. The client may be silent during that time."""
        self._is_command_blocking = True
        self._extend_send_timeout()
        try:
            await work
        finally:
            self._is_command_blocking = False

    def _extend_send_timeout(self) -> None:
        """Restart the time limit of the frame that is being sent, if any."""
        if self._sending is not None and not self._sending.expired():
            timeout_s = self._send_timeout_s()
            when_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
            self._sending.reschedule(when_s)

    def _send_timeout_s(self) -> float | None:
        return None if self._is_command_blocking else SILENCE_S
