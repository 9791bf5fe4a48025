"""Access to the repositories that references name: in registries and in OCI image layout directories."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Final

from yarl import URL

from agent.config import RegistryConfig
from agent.images.errors import RegistryError
from agent.images.reference import LayoutName, Reference, RegistryName
from agent.images.sources.auth import Authorizer
from agent.images.sources.credentials import ConfiguredCredentials
from agent.images.sources.http_client import HttpClient
from agent.images.sources.layout import OciLayout
from agent.images.sources.mirrored import MirroredRepository
from agent.images.sources.registry import RegistryRepository
from agent.images.sources.registry_http import RegistryAddress, RegistryHttp, RegistryTimeouts
from agent.images.transfer_limits import BandwidthLimiter
from agent.processes.command import CommandRunner

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.images.sources.contract import Repository

API_HOSTS: Final = {"docker.io": "registry-1.docker.io"}
"""The hosts that serve registries whose name is another one."""


class Repositories:
    """Opens repositories over one HTTP client, and keeps the logins of each registry until `close`.

    `bandwidth` limits the bytes that all registries send together; its limit can be changed at any time. `runner` runs
    credential helpers.
    """

    def __init__(
        self,
        registries: Mapping[str, RegistryConfig],
        *,
        bytes_per_s: float | None = None,
        timeouts: RegistryTimeouts | None = None,
        credential_files: Sequence[Path] | None = None,
        runner: CommandRunner | None = None,
    ) -> None:
        self._registries = registries
        self._timeouts = timeouts or RegistryTimeouts()
        self.bandwidth = BandwidthLimiter(bytes_per_s)
        files = default_credential_files() if credential_files is None else credential_files
        self._credentials = ConfiguredCredentials(registries, files, runner or CommandRunner())
        self._client = HttpClient()
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
        await self._client.close()

    def _settings(self, host: str) -> RegistryConfig:
        return self._registries.get(host, RegistryConfig())

    def _host(self, host: str) -> RegistryHttp:
        if host not in self._hosts:
            settings = self._settings(host)
            trust = _trust(host, settings)
            origin = URL(f"{'http' if settings.insecure else 'https'}://{API_HOSTS.get(host, host)}").origin()
            address = RegistryAddress(host, origin, local_redirects=settings.local_redirects)
            authorizer = Authorizer(
                self._client,
                host,
                self._credentials,
                insecure=settings.insecure,
                zones=address.zones,
                trust=trust,
            )
            self._hosts[host] = RegistryHttp(
                self._client, address, authorizer, timeouts=self._timeouts, bandwidth=self.bandwidth, trust=trust
            )
        return self._hosts[host]


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


def default_credential_files() -> tuple[Path, ...]:
    """Return the files in which docker, oras and podman store logins, in the order in which they are read."""
    environment, home = os.environ, Path.home()
    docker = Path(environment.get("DOCKER_CONFIG") or home / ".docker") / "config.json"
    podman = [home / ".config" / "containers" / "auth.json"]
    if configured := environment.get("XDG_CONFIG_HOME"):
        podman.insert(0, Path(configured) / "containers" / "auth.json")
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        podman.insert(0, Path(runtime) / "containers" / "auth.json")
    if chosen := environment.get("REGISTRY_AUTH_FILE"):
        return (Path(chosen), docker, *podman)
    return (docker, *podman)
