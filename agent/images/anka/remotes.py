"""Registration of the configured Anka Registry, with its credentials, as a remote of `anka`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog

from agent.anka.command import AnkaError, require_list
from agent.images.errors import BadImageError, RegistryError

if TYPE_CHECKING:
    from agent.anka.command import Anka
    from agent.config import AnkaConfig
    from agent.images.anka.version import Version

log = structlog.get_logger()

OWN_NAME: Final = "hearth"
OCI_SINCE: Final = (3, 9)


class Remotes:
    """The remotes of `anka registry`."""

    def __init__(self, anka: Anka, config: AnkaConfig) -> None:
        self._anka = anka
        self._config = config
        self._prepared = False

    async def prepare(self, version: Version) -> None:
        """Ensure that `anka` can pull a version. Raises `AnkaError`s, `RegistryError`, `BadImageError`."""
        if version.oci:
            await self._require_oci_support()
        elif not self._prepared:
            await self._add_remote()
            self._prepared = True

    async def _add_remote(self) -> None:
        config, name = self._config, self._config.remote
        url = (config.registry or "").rstrip("/")
        known = await self._list_remotes()
        if known.get(name) == url:
            return
        if name in known and name != OWN_NAME:
            remedy = "make registry and remote under [hypervisor.anka] agree"
            raise RegistryError(f"the remote {name} of `anka registry` is {known[name]}, not {url}", remedy=remedy)
        if name in known:
            await self._anka.query("registry", "remove", name)
        options = {
            "--cert": config.cert_file, "--key": config.key_file, "--cacert": config.ca_file,
            "--api-key-id": config.api_key_id, "--api-key": config.api_key_file,
        }  # fmt: skip
        given = [text for flag, value in options.items() if value is not None for text in (flag, str(value))]
        await self._anka.query("registry", *given, "add", name, url)
        log.info("anka-registry-added", remote=name, url=url)

    async def _list_remotes(self) -> dict[str, str]:
        """Return the URL of each remote. Releases before 3.9 list them by another command."""
        try:
            answer = await self._anka.query("registry", "--list")
        except AnkaError:
            answer = await self._anka.query("registry", "list-repos")
        entries = require_list(answer.body, "anka registry --list")
        return {str(entry.get("name")): str(entry.get("url", "")).rstrip("/") for entry in entries}

    async def _require_oci_support(self) -> None:
        body = (await self._anka.query("version")).body
        found = str(body.get("version", "")) if isinstance(body, dict) else ""
        release = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
        if release < OCI_SINCE:
            message = f"Anka {found or 'of an unknown release'} cannot pull from OCI registries"
            raise BadImageError(message, remedy="update Anka to 3.9 or later, or assign a template of an Anka Registry")
