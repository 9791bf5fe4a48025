"""The listeners: TCP for controllers, a Unix socket for the command line. A socket in use is never replaced."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import structlog
from aiohttp import web

from agent.api.connection import Connection, connections
from agent.api.dispatch import Dispatcher
from agent.api.tls import ServerTls
from agent.domain.errors import ErrorOrigin, HearthError
from agent.processes.resources import REMEDIES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.config import TlsConfig

log = structlog.get_logger()

_SHUTDOWN_S: Final = 1.0
"""Grace for running requests. The library waits this long twice: for their end, and after it cancelled them."""

_BACKLOG: Final = 256
_HANDSHAKE_S: Final = 10.0


class ListenError(HearthError):
    """The agent cannot listen on a configured address or socket."""

    code = "cannot-listen"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.HOST


class Server:
    """Serves one application on a TCP address and on a Unix socket.

    Port 0 takes any free port. The actual port is written to `port_file`.
    """

    def __init__(
        self,
        application: web.Application,
        *,
        host: str,
        port: int,
        socket_path: Path,
        port_file: Path | None = None,
        tls: TlsConfig | None = None,
    ) -> None:
        # A disconnected client cancels its handler: this ends a waiting lease request.
        self._runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=_SHUTDOWN_S)
        self._listeners: list[asyncio.Server] = []
        self._host, self._port, self._socket_path = host, port, socket_path
        self._port_file = port_file
        self._tls_files = tls
        self._watching_tls: asyncio.Task[None] | None = None
        self._socket_inode = 0

    @property
    def port(self) -> int:
        """The TCP port. If 0 is configured, it is known after `start`."""
        return self._port

    async def start(self) -> None:
        """Listen on both. Raises a `ListenError` that names the unavailable address or socket; then neither is open."""
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        server.request_handler = cast("Any", Dispatcher(self._runner.app, server.request_handler))
        try:
            await self._listen_unix()
            await self._listen_tcp()
        except BaseException:
            await self.close()
            raise
        if self._port_file is not None:
            try:
                self._port_file.write_text(f"{self._port}\n", encoding="ascii")
            except OSError as error:
                log.warning("port-not-written", port=self._port, error=str(error))
        log.info("api-listening", host=self._host, port=self._port, socket=str(self._socket_path))

    async def close(self) -> None:
        """Stop listening, let running requests end within a short grace, cancel the rest. May be called again."""
        self._remove_socket()
        if self._watching_tls is not None:
            self._watching_tls.cancel()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        await self._runner.cleanup()

    async def _listen_tcp(self) -> None:
        loop = asyncio.get_running_loop()
        tls = await asyncio.to_thread(ServerTls.open, self._tls_files) if self._tls_files else None
        try:
            listener = await loop.create_server(
                self._connections(),
                self._host,
                self._port,
                backlog=_BACKLOG,
                ssl=tls.context if tls else None,
                ssl_handshake_timeout=_HANDSHAKE_S if tls else None,
            )
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ListenError(
                    f"cannot listen on {self._host}:{self._port}: {error}", remedy="check api.host"
                ) from error
            raise ListenError(
                f"{self._host}:{self._port} is in use by another program",
                remedy="stop that program, or set api.port in the configuration to another port",
            ) from error
        self._listeners.append(listener)
        self._port = listener.sockets[0].getsockname()[1]
        if tls is not None:
            self._watching_tls = asyncio.create_task(tls.watch(), name="tls")

    async def _listen_unix(self) -> None:
        _refuse_live(self._socket_path)
        listener = _bound_socket(self._socket_path)
        self._socket_inode = self._socket_path.stat().st_ino
        server = await asyncio.get_running_loop().create_server(self._connections(), sock=listener, backlog=_BACKLOG)
        self._listeners.append(server)

    def _connections(self) -> Callable[[], Connection]:
        assert self._runner.server is not None
        return connections(self._runner.server)

    def _remove_socket(self) -> None:
        with suppress(FileNotFoundError):
            if self._socket_inode and self._socket_path.stat().st_ino == self._socket_inode:
                self._socket_path.unlink()
        self._socket_inode = 0


def _refuse_live(path: Path) -> None:
    """Raise `ListenError` if the path is a socket in use, or not a socket."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(
            f"{path} exists and is not a socket", remedy="move it away, or set api.socket to another path"
        )
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return  # a process that died left it
        except OSError as error:
            remedy = REMEDIES.get(error.errno or 0, "check the permissions of the socket and its folder")
            raise ListenError(f"{path} cannot be checked for a listener: {error}", remedy=remedy) from error
    raise ListenError(
        f"another agent listens on {path}", remedy="stop it first, or set api.socket and data_dir to other paths"
    )


def _bound_socket(path: Path) -> socket.socket:
    """Return a listening socket at `path`, which only this user may use.

    It is created under another name and then renamed, so that it never has wider permissions and a stale socket is
    replaced atomically.
    """
    fresh = path.with_name(path.name + ".new")
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.setblocking(False)
        fresh.unlink(missing_ok=True)
        listener.bind(str(fresh))
        fresh.chmod(0o600)
        listener.listen(_BACKLOG)
        os.replace(fresh, path)
    except OSError as error:
        listener.close()
        writable = "set api.socket to a path of at most 100 bytes in a folder this user can write to"
        remedy = REMEDIES.get(error.errno or 0, writable)
        raise ListenError(f"cannot listen on {path}: {error}", remedy=remedy) from error
    return listener
