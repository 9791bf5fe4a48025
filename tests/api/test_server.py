"""The listeners: permissions of the socket, cleanup, and sockets of other processes."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from agent.api.application import build_application
from agent.api.rate_limit import RateLimiter
from agent.api.server import ListenError, Server
from agent.app import api_parts
from agent.telemetry.metrics import Metrics
from tests.api.conftest import UNLIMITED, Running, allow_all, run
from tests.api.real_engine import RealEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agent.engine.engine import Engine


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Engine]:
    async with RealEngine().open(tmp_path / "engine") as engine:
        yield engine


def server(engine: Engine, path: Path, port: int = 0) -> Server:
    return Server(
        build_application(api_parts(engine), Metrics(), allow_all(path.parent), RateLimiter(UNLIMITED)),
        host="127.0.0.1",
        port=port,
        socket_path=path,
    )


async def test_socket_is_only_for_its_owner(api: Running) -> None:
    mode = api.socket.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert sorted(item.name for item in api.socket.parent.iterdir()) == ["engine", "hearth.sock"]


async def test_closed_listeners_leave_no_files(tmp_path: Path) -> None:
    async with run(RealEngine(), tmp_path) as api:
        for client in (api.tcp, api.unix):
            async with client.get("/livez") as response:
                assert response.status == 200
        port = api.server.port
    assert os.listdir(tmp_path) == ["engine"]
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_selected_port_is_written_to_the_port_file(tmp_path: Path, opened: Engine) -> None:
    application = build_application(api_parts(opened), Metrics(), allow_all(tmp_path), RateLimiter(UNLIMITED))
    port_file = tmp_path / "api.port"
    picked = Server(application, host="127.0.0.1", port=0, socket_path=tmp_path / "s", port_file=port_file)
    await picked.start()
    try:
        assert int(port_file.read_text()) == picked.port > 0
    finally:
        await picked.close()


async def test_port_in_use_is_named(tmp_path: Path, api: Running) -> None:
    path = tmp_path / "other.sock"
    second = server(api.engine.real, path, api.server.port)
    with pytest.raises(ListenError, match=rf"127\.0\.0\.1:{api.server.port} is in use.*api\.port"):
        await second.start()
    assert not path.exists()


async def test_socket_of_a_running_agent_is_kept(api: Running) -> None:
    with pytest.raises(ListenError, match="another agent listens"):
        await server(api.engine.real, api.socket).start()
    async with api.unix.get("/livez") as response:
        assert response.status == 200


async def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "hearth.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
        left.listen()
    async with run(RealEngine(), tmp_path) as api, api.unix.get("/livez") as response:
        assert response.status == 200


async def test_file_at_the_socket_path_is_kept(tmp_path: Path, opened: Engine) -> None:
    path = tmp_path / "hearth.sock"
    path.write_text("precious")
    with pytest.raises(ListenError, match="is not a socket"):
        await server(opened, path).start()
    assert path.read_text() == "precious"


async def test_long_socket_path_error_names_the_key(tmp_path: Path, opened: Engine) -> None:
    with pytest.raises(ListenError, match=r"api\.socket"):
        await server(opened, tmp_path / ("x" * 120)).start()


async def test_close_keeps_the_socket_of_a_later_agent(tmp_path: Path, opened: Engine) -> None:
    path = tmp_path / "hearth.sock"
    first = server(opened, path)
    await first.start()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(path))
        await first.close()
        assert path.exists()


async def test_close_ends_a_waiting_request(tmp_path: Path) -> None:
    engine = RealEngine()
    async with asyncio.timeout(8), run(engine, tmp_path) as api:
        waiting = asyncio.create_task(api.unix.post("/v1/leases", json={"pool": "small", "holder": "j", "wait_s": 600}))
        await engine.wait_for_request()
        await api.server.close()
        await asyncio.wait([waiting])
        assert not engine.parts.view.queue.requests
