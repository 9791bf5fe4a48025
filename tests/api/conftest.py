"""A server on a loopback port and a Unix socket, over the real engine with guests of this machine."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
import pytest

from agent.api.application import build_application
from agent.api.auth import Role, TokenAuthenticator
from agent.api.rate_limit import Rate, RateLimiter
from agent.api.server import Server
from agent.app import api_parts
from agent.domain.states import VmState
from tests.api.real_engine import RealEngine, vm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agent.api.auth import Authenticator
    from agent.config import TlsConfig
    from agent.telemetry.metrics import Metrics


@dataclass
class Running:
    """A running server with clients for both of its listeners."""

    engine: RealEngine
    server: Server
    socket: Path
    tcp: aiohttp.ClientSession
    unix: aiohttp.ClientSession

    @property
    def metrics(self) -> Metrics:
        return self.engine.metrics


UNLIMITED = Rate(1e9, 10**9)


def allow_all(folder: Path) -> TokenAuthenticator:
    """Return an authenticator that permits everything to every caller, as with `api.auth = "open"`."""
    return TokenAuthenticator(folder / "tokens.json", anonymous=Role.ADMIN)


@asynccontextmanager
async def run(
    engine: RealEngine,
    folder: Path,
    *,
    port: int = 0,
    authenticator: Authenticator | None = None,
    limiter: RateLimiter | None = None,
    tls: TlsConfig | None = None,
) -> AsyncIterator[Running]:
    """Serve `engine` until the block ends."""
    socket = folder / "hearth.sock"
    async with engine.open(folder / engine.data) as opened:
        application = build_application(
            api_parts(opened), engine.metrics, authenticator or allow_all(folder), limiter or RateLimiter(UNLIMITED)
        )
        server = Server(application, host="127.0.0.1", port=port, socket_path=socket, tls=tls)
        await server.start()
        async with clients(server, socket, tls=tls) as (tcp, unix):
            try:
                yield Running(engine, server, socket, tcp, unix)
            finally:
                await server.close()


@asynccontextmanager
async def clients(
    server: Server, socket: Path, *, tls: TlsConfig | None
) -> AsyncIterator[tuple[aiohttp.ClientSession, aiohttp.ClientSession]]:
    """Open a client for each listener of a server."""
    async with (
        aiohttp.ClientSession(f"{'https' if tls else 'http'}://127.0.0.1:{server.port}") as tcp,
        aiohttp.ClientSession("http://localhost", connector=aiohttp.UnixConnector(str(socket))) as unix,
    ):
        yield tcp, unix


@pytest.fixture
def engine() -> RealEngine:
    return RealEngine(vm("hearth-small-1", age_s=90), vm("hearth-small-2", VmState.STARTING, age_s=30))


@pytest.fixture
async def api(engine: RealEngine, tmp_path: Path) -> AsyncIterator[Running]:
    async with run(engine, tmp_path) as running:
        yield running
