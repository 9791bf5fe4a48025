"""TLS for the TCP listener, with certificates renewed without a restart."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, ClassVar, Final

import structlog

from agent.domain.errors import ErrorOrigin, HearthError

if TYPE_CHECKING:
    from agent.config import TlsConfig

log = structlog.get_logger()

CHECK_INTERVAL_S: Final = 30.0


class TlsError(HearthError):
    """The certificate, its key or the authority of clients cannot be used."""

    code = "tls-unusable"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.HOST


def server_context(files: TlsConfig) -> ssl.SSLContext:
    """Return the context of a server. It requires client certificates if an authority for them is configured."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(files.certificate, files.key)
        if files.client_ca is not None:
            context.load_verify_locations(files.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        paths = f"{files.certificate}, {files.key}" + (f", {files.client_ca}" if files.client_ca else "")
        raise TlsError(
            f"TLS cannot be set up from {paths}: {error}", remedy="check [api.tls] and these files"
        ) from error
    return context


class ServerTls:
    """The TLS of a listener. New connections use the newest valid certificate."""

    def __init__(self, files: TlsConfig, context: ssl.SSLContext) -> None:
        self._files = files
        self._newest = self.context = context
        self._stamp = self._stamps()
        # Called for every handshake, with or without a name: only here a context can still be replaced.
        context.sni_callback = self._exchange

    @classmethod
    def open(cls, files: TlsConfig) -> ServerTls:
        """Read the files. Raises `TlsError`."""
        return cls(files, server_context(files))

    async def watch(self) -> None:
        """Load renewed files until cancelled. Invalid files leave the last valid ones in force."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            await asyncio.to_thread(self.refresh)

    def refresh(self) -> None:
        """Load the files if they changed."""
        stamp = self._stamps()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._newest = server_context(self._files)
            log.info("tls-renewed", certificate=str(self._files.certificate))
        except TlsError as error:
            log.warning("tls-not-renewed", error=str(error))

    def _exchange(self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _old: ssl.SSLContext) -> None:
        connection.context = self._newest

    def _stamps(self) -> tuple[int, ...]:
        files = (self._files.certificate, self._files.key, self._files.client_ca)
        return tuple(file.stat().st_mtime_ns if file and file.exists() else 0 for file in files)
