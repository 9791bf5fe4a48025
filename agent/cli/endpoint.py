"""The endpoint of an agent, and connections to it: a Unix socket on this host, or TLS to another host."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_PORT: Final = 7420


class AgentUnreachableError(HearthError):
    """No agent answers at the endpoint."""

    code = "agent-unreachable"


class AgentNotRunningError(AgentUnreachableError):
    """Nothing listens at the endpoint."""


class LoginError(HearthError):
    """A token or certificate file cannot be read."""

    code = "login-unreadable"


@dataclass(frozen=True, slots=True)
class RemoteEndpoint:
    """An agent on another host: `https://host:port`, or http on loopback, with the credentials of both sides.

    `ca` is a PEM file of the trusted authorities; None means the system's. `certificate` and `key` are PEM files for an
    agent that requires a client certificate.
    """

    url: str
    token: str = field(default="", repr=False)
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    remedy: str = "check the address, the certificates (HEARTH_CA, HEARTH_CERT, HEARTH_KEY), and that the agent runs"

    @classmethod
    def from_environment(cls, url: str, environment: Mapping[str, str]) -> Self:
        """Return the agent at `url` with the credentials that the environment names. Raises `LoginError`."""
        token, file = environment.get("HEARTH_TOKEN", ""), environment.get("HEARTH_TOKEN_FILE", "")
        if file and not token:
            try:
                token = Path(file).read_text(encoding="utf-8").strip()
            except OSError as error:
                message = f"the token file {file} cannot be read: {error.strerror}"
                raise LoginError(message, remedy="check HEARTH_TOKEN_FILE") from error
        ca, certificate, key = (
            Path(path) if (path := environment.get(name)) else None
            for name in ("HEARTH_CA", "HEARTH_CERT", "HEARTH_KEY")
        )
        return cls(url, token, ca, certificate, key)

    def __str__(self) -> str:
        return self.url

    @property
    def base_url(self) -> str:
        """The URL without a path. Raises `AgentUnreachableError` for an invalid URL."""
        scheme, host, port = self._parts()
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def build_connection(self, timeout_s: float) -> HTTPConnection:
        """Return a connection that is not open yet.

        Raises `AgentUnreachableError` for an invalid URL, and `LoginError`.
        """
        scheme, host, port = self._parts()
        if scheme == "http":
            return HTTPConnection(host, port, timeout=timeout_s)
        return HTTPSConnection(host, port, timeout=timeout_s, context=self.build_tls_context())

    def build_tls_context(self) -> ssl.SSLContext:
        """Return the TLS settings with the authorities and the client certificate. Raises `LoginError`."""
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(str(file) for file in (self.ca, self.certificate, self.key) if file)
            remedy = "check HEARTH_CA, HEARTH_CERT and HEARTH_KEY"
            raise LoginError(f"the certificates {files} cannot be used: {error}", remedy=remedy) from error
        return context

    def _parts(self) -> tuple[str, str, int]:
        try:
            parts = urlsplit(self.url)
            scheme, host, port = parts.scheme, parts.hostname, parts.port or DEFAULT_PORT
        except ValueError:
            scheme, host, port = "", None, 0
        if scheme not in ("http", "https") or not host:
            raise AgentUnreachableError(f"{self.url!r} is not an agent's address", remedy="write https://HOST:PORT")
        return scheme, host, port


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """The agent that listens on a Unix socket of this host. The socket's file permissions replace a login."""

    path: Path
    token: str = ""
    remedy: str = "start it with `hearth run`, or name its socket with --socket or its configuration with --config"

    def __str__(self) -> str:
        return str(self.path)

    def build_connection(self, timeout_s: float) -> HTTPConnection:
        """Return a connection that is not open yet."""
        return _UnixConnection(self.path, timeout_s)


class _UnixConnection(HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of a TCP address."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
