"""Access to the repositories that references name: in registries and in OCI image layout directories."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from agent.config import RegistryConfig
from agent.images.errors import RegistryError
from agent.images.reference import LayoutName, Reference, RegistryName
from agent.images.sources.auth import Authorizer
from agent.images.sources.credentials import ConfiguredCredentials
from agent.images.sources.layout import OciLayout
from agent.images.sources.mirrored import MirroredRepository
from agent.images.sources.registry import RegistryRepository
from agent.images.sources.registry_http import RegistryHttp, RegistryTimeouts
from agent.images.transfer_limits import BandwidthLimiter
from agent.processes.command import CommandRunner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.images.sources.contract import Repository

_RECEIVE_BYTES = 512 << 10


class Repositories:
    """Opens repositories over one HTTP session, and keeps the logins of each registry until `close`.

    `bandwidth` limits the bytes that all registries send together; its limit can be changed at any time. `runner` runs
    docker's credential helpers.
    """

    def __init__(
        self,
        registries: Mapping[str, RegistryConfig],
        *,
        bytes_per_s: float | None = None,
        timeouts: RegistryTimeouts | None = None,
        docker_config: Path | None = None,
        runner: CommandRunner | None = None,
    ) -> None:
        self._registries = registries
        self._timeouts = timeouts or RegistryTimeouts()
        self.bandwidth = BandwidthLimiter(bytes_per_s)
        self._credentials = ConfiguredCredentials(
            registries, docker_config or default_docker_config(), runner or CommandRunner()
        )
        self._session: aiohttp.ClientSession | None = None
        self._hosts: dict[str, RegistryHttp] = {}

    def open(self, reference: Reference) -> Repository:
        """Return the repository that a reference names, with its mirrors.

        Sends no request, but needs a running event loop.
        """
        match reference.name:
            case LayoutName(path):
                return OciLayout(path)
            case RegistryName(host, namespace):
                origin = RegistryRepository(self._host(host), namespace)
                mirrors = [RegistryRepository(self._host(m), namespace) for m in self._settings(host).mirrors]
                return MirroredRepository(origin, mirrors) if mirrors else origin

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def _settings(self, host: str) -> RegistryConfig:
        return self._registries.get(host, RegistryConfig())

    def _host(self, host: str) -> RegistryHttp:
        if host not in self._hosts:
            settings = self._settings(host)
            session, trust = self._open_session(), _trust(host, settings)
            authorizer = Authorizer(session, host, self._credentials, insecure=settings.insecure, trust=trust)
            self._hosts[host] = RegistryHttp(
                session,
                host,
                authorizer,
                insecure=settings.insecure,
                timeouts=self._timeouts,
                bandwidth=self.bandwidth,
                trust=trust,
            )
        return self._hosts[host]

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=True,
                read_bufsize=_RECEIVE_BYTES,
                headers={"User-Agent": "hearth"},
            )
        return self._session


def _trust(host: str, settings: RegistryConfig) -> ssl.SSLContext | bool:
    """Return the trusted authorities: those of the system, and those in the configured file."""
    if settings.ca_file is None:
        return True
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        remedy = f'correct ca_file under [images.registries."{host}"]'
        message = f"the certificates in {settings.ca_file} for the registry {host} cannot be loaded: {error}"
        raise RegistryError(message, remedy=remedy) from error
    return context


def default_docker_config() -> Path:
    """Return the path of docker's config.json."""
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
