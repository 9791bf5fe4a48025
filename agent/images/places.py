"""Opens the place that a reference names: a registry's repository or an OCI layout directory."""

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
from agent.images.sources.http import Patience, RegistryHttp
from agent.images.sources.layout import OciLayout
from agent.images.sources.mirrored import MirroredPlace
from agent.images.sources.registry import RegistryRepository
from agent.images.throttle import Throttle
from agent.processes.command import CommandRunner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.images.sources.contract import Place

_RECEIVE_BYTES = 512 << 10


class Places:
    """Keeps one HTTP session, and per registry its logins, for as long as the agent runs.

    `throttle` caps what all of them bring in together; it can be changed at any time. `runner` runs docker's credential
    helpers.
    """

    def __init__(
        self,
        registries: Mapping[str, RegistryConfig],
        *,
        bytes_per_s: float | None = None,
        patience: Patience | None = None,
        docker_config: Path | None = None,
        runner: CommandRunner | None = None,
    ) -> None:
        self._registries = registries
        self._patience = patience or Patience()
        self.throttle = Throttle(bytes_per_s)
        self._credentials = ConfiguredCredentials(
            registries, docker_config or default_docker_config(), runner or CommandRunner()
        )
        self._session: aiohttp.ClientSession | None = None
        self._hosts: dict[str, RegistryHttp] = {}

    def open(self, reference: Reference) -> Place:
        """Return the place that a reference names, with its mirrors. Needs a running event loop; asks nobody yet."""
        match reference.name:
            case LayoutName(path):
                return OciLayout(path)
            case RegistryName(host, namespace):
                origin = RegistryRepository(self._host(host), namespace)
                mirrors = [RegistryRepository(self._host(m), namespace) for m in self._settings(host).mirrors]
                return MirroredPlace(origin, mirrors) if mirrors else origin

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
                patience=self._patience,
                throttle=self.throttle,
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
    """Return whose certificates are trusted: the system's, and those of the configured file."""
    if settings.ca_file is None:
        return True
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        remedy = f'mend ca_file under [images.registries."{host}"]'
        raise RegistryError(f"the certificates {settings.ca_file} cannot be used: {error}", remedy=remedy) from error
    return context


def default_docker_config() -> Path:
    """Return where docker keeps its configuration."""
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
