"""One exec stream: a WebSocket on one side, a command in a guest on the other, and nothing left when either ends."""

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
"""The first byte of a binary frame from the agent says which stream the others are of."""

MAX_FRAME_BYTES: Final = 256 << 10
AHEAD: Final = 8
"""Frames of input taken from the client ahead of the command. A client that sends more waits; so do its signals."""
FIRST_MESSAGE_S: Final = 10.0
PING_S: Final = 15.0
"""Proxies and clients then know that the line is good."""
SILENCE_S: Final = 30.0
"""A client that takes nothing and says nothing for so long is cut off, and its command killed. One that takes nothing
since its own reader pauses says so by a pong: the command is held up until it reads on."""
CLOSE_S: Final = 1.0

_START: Final = TypeAdapter(ExecStart)
_SIGNS_OF_LIFE: Final = (WSMsgType.PING, WSMsgType.PONG)
_HUNG_UP: Final = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR)


class ExecStream:
    """Runs one command for one client. `opened` starts it, once the client has said what to run."""

    def __init__(self, socket: web.WebSocketResponse, *, request_id: str) -> None:
        self._socket = socket
        self._request_id = request_id
        self._input: asyncio.Queue[bytes | None] = asyncio.Queue(AHEAD)
        self._fault: RequestError | None = None
        self._held_up = False
        """Whether the command does not take what the client sends: so long we cannot hear the client."""
        self._sending: asyncio.Timeout | None = None

    async def serve(self, opened: Callable[[ExecStart], AbstractAsyncContextManager[ExecSession]]) -> int | None:
        """Talk until the command has ended or the client is gone. Returns the exit code if there was one to tell."""
        try:
            wanted = await self._first()
            if wanted is None:
                return None
            async with opened(wanted) as session:
                await self._tell(ExecStarted())
                exit_code = await self._follow(session, wanted)
        except HearthError as error:
            await self._tell(ExecFailed(problem=problem_of(error, request_id=self._request_id)))
            await self._socket.close(code=WSCloseCode.POLICY_VIOLATION, message=error.code.encode())
            return None
        if exit_code is not None:
            await self._tell(ExecExit(exit_code=exit_code))
        await self._socket.close()
        return exit_code

    async def _first(self) -> ExecStart | None:
        """Return what to run, or None when the client hung up."""
        try:
            async with asyncio.timeout(FIRST_MESSAGE_S):
                while (message := await self._socket.receive()).type in _SIGNS_OF_LIFE:
                    await self._live(message)
        except TimeoutError:
            raise RequestError(
                f"no command was named within {FIRST_MESSAGE_S:g} s", remedy='send {"argv": [...]} first'
            ) from None
        if message.type in _HUNG_UP:
            return None
        if message.type is not WSMsgType.TEXT:
            raise RequestError("the first message names no command", remedy='send {"argv": [...]} as text first')
        with raise_field_errors("message"):
            return _START.validate_json(message.data)

    async def _follow(self, session: ExecSession, wanted: ExecStart) -> int | None:
        """Tell what the command writes. Returns its exit code; also when it was killed since the client hung up."""
        doing = (self._listen(session), self._feed(session), self._ping())
        helpers = [asyncio.create_task(work) for work in doing]
        try:
            async with asyncio.timeout(wanted.timeout_s), aclosing(session.output()) as output:
                async for item in output:
                    await self._send((STDOUT if item.stream == "stdout" else STDERR) + item.data)
        except TimeoutError:
            raise GuestError(
                f"`{wanted.argv[0]}` did not end within {wanted.timeout_s:g} s and was killed",
                remedy="give it longer: timeout_s",
            ) from None
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.wait(helpers)
        if self._fault is not None:
            raise self._fault
        return session.exit_code

    async def _listen(self, session: ExecSession) -> None:
        """Take in what the client sends. When it hangs up or makes no sense, the command is killed, which ends all."""
        with suppress(GuestError):  # whoever waits for output meets the same, and tells it
            try:
                while (message := await self._socket.receive()).type not in _HUNG_UP:
                    await self._take(message, session)
                    self._heard()
            except RequestError as error:
                self._fault = error
            await session.signal("KILL")

    async def _take(self, message: WSMessage, session: ExecSession) -> None:
        if message.type in _SIGNS_OF_LIFE:
            await self._live(message)
            return
        if message.type is WSMsgType.BINARY:
            await self._hold_up(self._input.put(message.data))
            return
        with raise_field_errors("message"):
            control = CONTROL.validate_json(message.data)
        await self._hold_up(
            self._input.put(None) if isinstance(control, ExecEndInput) else session.signal(control.signal)
        )

    async def _live(self, message: WSMessage) -> None:
        """Answer a ping; a pong says all there is to say."""
        if message.type is WSMsgType.PING:
            await self._socket.pong(message.data)

    async def _feed(self, session: ExecSession) -> None:
        """Give the command its input."""
        with suppress(GuestError):  # whoever waits for output meets the same, and tells it
            while (data := await self._input.get()) is not None:
                await session.write(data)
            await session.end_input()

    async def _ping(self) -> None:
        with suppress(ConnectionError):
            while True:
                await asyncio.sleep(PING_S)
                await self._socket.ping()

    async def _tell(self, document: BaseModel) -> None:
        """Send a document, if there still is somebody to take it."""
        if not self._socket.closed:
            await self._send(document.model_dump_json(exclude_none=True))

    async def _send(self, data: bytes | str) -> None:
        try:
            async with asyncio.timeout(self._patience_s()) as self._sending:
                await (self._socket.send_bytes(data) if isinstance(data, bytes) else self._socket.send_str(data))
        except TimeoutError:
            raise ConnectionResetError("the client takes nothing, and says nothing") from None
        finally:
            self._sending = None

    async def _hold_up(self, work: Awaitable[None]) -> None:
        """Do what the command may hold up. The client is not to blame for being silent meanwhile."""
        self._held_up = True
        self._heard()
        try:
            await work
        finally:
            self._held_up = False

    def _heard(self) -> None:
        """Give the client its whole time again for what is being sent to it, if anything is."""
        if self._sending is not None and not self._sending.expired():
            patience_s = self._patience_s()
            when_s = None if patience_s is None else asyncio.get_running_loop().time() + patience_s
            self._sending.reschedule(when_s)

    def _patience_s(self) -> float | None:
        return None if self._held_up else SILENCE_S
