"""Where an agent is, and how a connection to it is made: a Unix socket here, or TLS to another host."""

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
    """Nobody answers where the agent should."""

    code = "agent-unreachable"


class LoginError(HearthError):
    """The token or certificates to show, or to trust, cannot be read."""

    code = "login-unreadable"


@dataclass(frozen=True, slots=True)
class Remote:
    """An agent on another host: `https://host:port` (or http on loopback), and how each side proves who it is.

    `ca` is a PEM file of whom to trust, the system's authorities without one; `certificate` and `key` are PEM files to
    show where the agent asks for a certificate.
    """

    url: str
    token: str = field(default="", repr=False)
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    remedy: str = "check the address, the certificates (HEARTH_CA, HEARTH_CERT, HEARTH_KEY), and that the agent runs"

    @classmethod
    def of(cls, url: str, environment: Mapping[str, str]) -> Self:
        """Return the agent at `url` with what the environment says of it. Raises `LoginError`."""
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
    def base(self) -> str:
        """The URL that paths are put after."""
        scheme, host, port = self._parts()
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def connection(self, timeout_s: float) -> HTTPConnection:
        """Return a connection, not yet made. Raises `AgentUnreachableError` for what is no such URL, `LoginError`."""
        scheme, host, port = self._parts()
        if scheme == "http":
            return HTTPConnection(host, port, timeout=timeout_s)
        return HTTPSConnection(host, port, timeout=timeout_s, context=self.tls())

    def tls(self) -> ssl.SSLContext:
        """Return whom to trust and what to show. Raises `LoginError`."""
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
            raise AgentUnreachableError(f"{self.url!r} is no address of an agent", remedy="write https://HOST:PORT")
        return scheme, host, port


@dataclass(frozen=True, slots=True)
class Local:
    """The agent that listens on a Unix socket of this host. File permissions are the login."""

    path: Path
    token: str = ""
    remedy: str = "start it with `hearth run`, or name its socket with --socket or its configuration with --config"

    def __str__(self) -> str:
        return str(self.path)

    def connection(self, timeout_s: float) -> HTTPConnection:
        """Return a connection, not yet made."""
        return _UnixConnection(self.path, timeout_s)


class _UnixConnection(HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of an address."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
