"""Commands in guests over a WebSocket: output, input, end, and cleanup."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from agent.api import exec_stream
from agent.domain.states import VmState
from tests.api.conftest import run
from tests.api.real_engine import RealEngine, vm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.api.conftest import Running

Socket = aiohttp.ClientWebSocketResponse
STREAMS = {1: "stdout", 2: "stderr"}


async def leased(api: Running) -> str:
    async with api.unix.post("/v1/leases", json={"pool": "small", "holder": "job"}) as response:
        return f"/v1/leases/{(await response.json())['id']}/exec"


def abort(socket: Socket) -> None:
    """Break the connection without a close frame."""
    transport = socket._writer.transport
    assert transport is not None
    transport.abort()


@asynccontextmanager
async def command(api: Running, *argv: str, **more: object) -> AsyncIterator[Socket]:
    """Run a command in the guest of a new lease."""
    async with api.unix.ws_connect(await leased(api), protocols=[exec_stream.PROTOCOL]) as socket:
        await socket.send_json({"argv": argv, **more})
        yield socket


async def received(socket: Socket) -> tuple[dict[str, bytes], list[Any]]:
    """Return all messages until the agent closes: output by stream, and documents."""
    streams, documents = {"stdout": b"", "stderr": b""}, []
    async for message in socket:
        if message.type is aiohttp.WSMsgType.BINARY:
            streams[STREAMS[message.data[0]]] += message.data[1:]
        else:
            documents.append(json.loads(message.data))
    return streams, documents


async def test_exec_sends_output_and_exit_code(api: Running) -> None:
    async with command(api, "sh", "-c", "echo out; echo err >&2; exit 7") as socket:
        assert await received(socket) == (
            {"stdout": b"out\n", "stderr": b"err\n"},
            [{"type": "started"}, {"type": "exit", "exit_code": 7}],
        )
        assert socket.close_code == aiohttp.WSCloseCode.OK
    assert api.engine.guests.executed == [("hearth-small-1", ("sh", "-c", "echo out; echo err >&2; exit 7"))]


async def test_exec_streams_output_and_input_while_running(api: Running) -> None:
    async with command(api, "cat", stdin=True) as socket:
        assert await socket.receive_json() == {"type": "started"}
        for line in (b"one\n", b"\0\xff"):
            await socket.send_bytes(line)
            assert await socket.receive_bytes() == b"\x01" + line
        await socket.send_json({"type": "end-input"})
        assert await received(socket) == ({"stdout": b"", "stderr": b""}, [{"type": "exit", "exit_code": 0}])


async def test_exec_transfers_a_megabyte_both_ways(api: Running) -> None:
    data = bytes(range(256)) * 4096
    async with command(api, "cat", stdin=True) as socket:
        reading = asyncio.create_task(received(socket))
        for begin in range(0, len(data), 60_000):
            await socket.send_bytes(data[begin : begin + 60_000])
        await socket.send_json({"type": "end-input"})
        streams, _ = await reading
        assert streams["stdout"] == data


@pytest.mark.parametrize(("signal", "code"), [("INT", 130), ("TERM", 143), ("KILL", 137)])
async def test_signals_reach_the_command(api: Running, signal: str, code: int) -> None:
    async with command(api, "sleep", "600") as socket:
        await socket.receive_json()
        await socket.send_json({"type": "signal", "signal": signal})
        assert (await received(socket))[1] == [{"type": "exit", "exit_code": code}]


async def test_command_is_killed_when_its_client_disconnects(api: Running) -> None:
    for abrupt in (False, True):
        async with command(api, "sleep", "600") as socket:
            await socket.receive_json()
            if abrupt:
                abort(socket)
        session = api.engine.guests.sessions[-1]
        await session.closed.wait()
        assert session.exit_code == 137
        session.closed.clear()
        await api.engine.move_vm("hearth-small-2", VmState.READY)


async def test_command_is_killed_when_its_client_left_before_its_start(api: Running) -> None:
    async with api.unix.ws_connect(await leased(api)):
        pass
    guests = api.engine.guests
    assert guests.executed == []
    guests.exec_delay = asyncio.Event()
    async with api.unix.ws_connect(f"/v1/leases/{next(iter(api.engine.leases))}/exec") as socket:
        await socket.send_json({"argv": ["sleep", "600"]})
        await guests.exec_requested.wait()
        abort(socket)
    guests.exec_delay.set()
    async with asyncio.timeout(10):
        await guests.session_closed.wait()
    assert [session.exit_code for session in guests.sessions] == [137]


async def test_command_is_killed_after_its_timeout(api: Running) -> None:
    async with command(api, "sleep", "600", timeout_s=0.05) as socket:
        _, (_, last) = await received(socket)
    assert (last["type"], last["problem"]["code"]) == ("problem", "guest-error")
    assert "within 0.05 s" in last["problem"]["detail"]
    assert api.engine.guests.sessions[0].exit_code == 137


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ('{"argv": []}', "/argv"),
        ('{"argv": ["true"], "shell": true}', "/shell"),
        ("{", "JSON"),
        (b"\0", "names no command"),
    ],
)
async def test_first_message_without_a_command_is_refused(api: Running, first: str | bytes, message: str) -> None:
    async with api.unix.ws_connect(await leased(api)) as socket:
        await (socket.send_str(first) if isinstance(first, str) else socket.send_bytes(first))
        _, (last,) = await received(socket)
        assert socket.close_code == aiohttp.WSCloseCode.POLICY_VIOLATION
    assert last["problem"]["code"] == "invalid-request"
    assert message in last["problem"]["detail"]
    assert api.engine.guests.executed == []


async def test_silent_client_is_disconnected_before_its_command(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exec_stream, "FIRST_MESSAGE_S", 0.05)
    async with api.unix.ws_connect(await leased(api)) as socket:
        assert "the client sent no command" in (await received(socket))[1][0]["problem"]["detail"]


@pytest.mark.parametrize(
    "message", ["{}", '{"type": "signal", "signal": "STOP"}', "[", '{"type":"start","argv":["x"]}']
)
async def test_invalid_message_ends_the_command(api: Running, message: str) -> None:
    async with command(api, "sleep", "600") as socket:
        await socket.receive_json()
        await socket.send_str(message)
        assert (await received(socket))[1][0]["problem"]["code"] == "invalid-request"
    assert api.engine.guests.sessions[0].exit_code == 137


async def test_client_that_does_not_read_is_disconnected(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exec_stream, "SILENCE_S", 0.05)
    async with command(api, "yes"):
        await api.engine.guests.session_closed.wait()


@pytest.mark.parametrize("sign", ["pong", "ping"])
async def test_client_that_pings_without_reading_stays_connected(
    api: Running, monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    monkeypatch.setattr(exec_stream, "SILENCE_S", 0.3)
    async with command(api, "sh", "-c", "yes | head -c 20000000; exit 7") as socket:
        for _ in range(30):  # three times as long as a silent client may take
            await getattr(socket, sign)()
            await asyncio.sleep(0.03)
        assert not api.engine.guests.session_closed.is_set()
        streams, documents = await received(socket)
    assert streams["stdout"] == b"y\n" * 10_000_000
    assert documents[-1] == {"type": "exit", "exit_code": 7}


async def test_client_with_pending_input_stays_connected(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exec_stream, "SILENCE_S", 0.1)
    async with command(api, "sh", "-c", "yes | head -c 2000000; cat | wc -c", stdin=True) as socket:
        sending = asyncio.create_task(send_frames(socket, 64))
        await asyncio.sleep(0.4)
        assert not api.engine.guests.session_closed.is_set()
        streams, _ = await received(socket)
        await sending
    assert streams["stdout"].endswith(b"y\n%d\n" % (64 * exec_stream.MAX_FRAME_BYTES))


async def send_frames(socket: Socket, frames: int) -> None:
    for _ in range(frames):
        await socket.send_bytes(bytes(exec_stream.MAX_FRAME_BYTES))
    await socket.send_json({"type": "end-input"})


async def test_unknown_lease_is_reported_before_the_upgrade(api: Running) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await api.unix.ws_connect("/v1/leases/none/exec")
    assert refused.value.status == 404
    async with api.unix.get(await leased(api)) as response:
        assert response.status == 426
        assert response.headers["Upgrade"] == "websocket"
        assert (await response.json())["code"] == "upgrade-required"


async def test_foreign_origin_cannot_open_an_exec(api: Running) -> None:
    path = await leased(api)
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await api.tcp.ws_connect(path, origin="http://evil.example")
    assert refused.value.status == 403


async def test_command_is_killed_when_the_agent_stops(tmp_path: Path) -> None:
    engine = RealEngine(vm("hearth-small-1"))
    async with run(engine, tmp_path) as api, command(api, "sleep", "600") as socket:
        await socket.receive_json()
        closing = asyncio.create_task(api.server.close())
        await received(socket)
        assert socket.close_code == aiohttp.WSCloseCode.GOING_AWAY
        await closing
        assert engine.guests.sessions[0].exit_code == 137
