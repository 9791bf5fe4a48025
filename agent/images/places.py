"""Opens the place that a reference names: a registry's repository or an OCI layout directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from agent.config import RegistryConfig
from agent.images.reference import LayoutName, Reference, RegistryName
from agent.images.sources.auth import Authorizer
from agent.images.sources.credentials import ConfiguredCredentials
from agent.images.sources.http import Patience, RegistryHttp
from agent.images.sources.layout import OciLayout
from agent.images.sources.registry import RegistryRepository

if TYPE_CHECKING:
    from collections.abc import Mapping

_RECEIVE_BYTES = 512 << 10


class Places:
    """Keeps one HTTP session, and per registry its logins, for as long as the agent runs."""

    def __init__(
        self,
        registries: Mapping[str, RegistryConfig],
        *,
        patience: Patience | None = None,
        docker_config: Path | None = None,
    ) -> None:
        self._registries = registries
        self._patience = patience or Patience()
        self._credentials = ConfiguredCredentials(registries, docker_config or default_docker_config())
        self._session: aiohttp.ClientSession | None = None
        self._hosts: dict[str, RegistryHttp] = {}

    def open(self, reference: Reference) -> RegistryRepository | OciLayout:
        """Return the place that a reference names. Needs a running event loop; asks nobody yet."""
        match reference.name:
            case LayoutName(path):
                return OciLayout(path)
            case RegistryName(host, namespace):
                return RegistryRepository(self._host(host), namespace)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def _host(self, host: str) -> RegistryHttp:
        if host not in self._hosts:
            insecure = self._registries.get(host, RegistryConfig()).insecure
            session = self._open_session()
            authorizer = Authorizer(session, host, self._credentials, insecure=insecure)
            self._hosts[host] = RegistryHttp(session, host, authorizer, insecure=insecure, patience=self._patience)
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


def default_docker_config() -> Path:
    """Return where docker keeps its configuration."""
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
