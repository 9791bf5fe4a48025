"""Credentials for registries: from Hearth's configuration, otherwise from docker's config.json.

docker's file is read at each use, so that a changed password needs no restart. Its `credHelpers` and `credsStore`
programs (docker-credential-*) run with a timeout, and their error output is separate from their reply.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from agent.images.errors import RegistryDeniedError
from agent.processes.command import Command, CommandError, CommandRunner

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from agent.config import RegistryConfig

log = structlog.get_logger()

HELPER_TIMEOUT_S: Final = 20.0
_MAX_FILE_BYTES: Final = 4 << 20
_NO_CREDENTIALS: Final = "credentials not found in native keychain"
_TOKEN_USER: Final = "<token>"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name with its password, or an identity token (an OAuth 2 refresh token) in place of both."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


class CredentialStore(Protocol):
    """A source of credentials."""

    async def find(self, host: str) -> Credentials | None:
        """Return the credentials for `host` (with its port if it has one), or None for anonymous use."""


class ConfiguredCredentials:
    """Credentials of Hearth's configuration, then those of docker."""

    def __init__(self, registries: Mapping[str, RegistryConfig], docker_config: Path, runner: CommandRunner) -> None:
        self._registries = registries
        self._docker = DockerCredentials(docker_config, runner)

    async def find(self, host: str) -> Credentials | None:
        """See `CredentialStore.find`."""
        registry = self._registries.get(host)
        if registry is not None and registry.username is not None and registry.password is not None:
            return Credentials(registry.username, registry.password.get_secret_value())
        return await self._docker.find(host)


class DockerCredentials:
    """docker's config.json: `credHelpers`, then `auths`, then `credsStore`."""

    def __init__(self, path: Path, runner: CommandRunner) -> None:
        self._path = path
        self._runner = runner

    async def find(self, host: str) -> Credentials | None:
        """See `CredentialStore.find`. Raises `RegistryDeniedError` when a helper program fails."""
        document = await asyncio.to_thread(self._load)
        helpers = _mapping(document.get("credHelpers"))
        if isinstance(helper := helpers.get(host), str):
            return await _run_helper(self._runner, helper, host)
        auths = _mapping(document.get("auths"))
        entry = next((_mapping(auths[key]) for key in _keys(host) if key in auths), None)
        found = _from_entry(entry) if entry else None
        if found is None and isinstance(store := document.get("credsStore"), str):
            return await _run_helper(self._runner, store, host)
        return found

    def _load(self) -> dict[str, Any]:
        try:
            with self._path.open("rb") as file:
                document = json.loads(file.read(_MAX_FILE_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("docker-config-unreadable", path=str(self._path), error=str(error))
            return {}
        return _mapping(document)


def _keys(host: str) -> tuple[str, ...]:
    return (host, f"https://{host}", f"http://{host}", f"https://{host}/v1/", f"https://{host}/v2/")


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _from_entry(entry: Mapping[str, Any]) -> Credentials | None:
    if isinstance(token := entry.get("identitytoken"), str) and token:
        return Credentials(identity_token=token)
    if isinstance(auth := entry.get("auth"), str) and auth:
        try:
            # A password may contain colons; a user name may not.
            username, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        return Credentials(username, password.rstrip("\0")) if colon else None
    user, secret = entry.get("username"), entry.get("password")
    return Credentials(user, secret) if isinstance(user, str) and isinstance(secret, str) else None


async def _run_helper(runner: CommandRunner, helper: str, host: str) -> Credentials | None:
    program = f"docker-credential-{helper}"
    try:
        result = await runner.run(
            Command((program, "get"), timeout_s=HELPER_TIMEOUT_S, stdin=host.encode()), check=False
        )
    except CommandError as error:
        remedy = "fix that program, or remove it from docker's config.json"
        raise RegistryDeniedError(f"running {program} for {host} failed: {error.message}", remedy=remedy) from None
    text = result.stdout.decode(errors="replace")
    if result.exit_code != 0:
        if _NO_CREDENTIALS in text:
            return None
        output = (text + result.stderr.decode(errors="replace")).strip()[:500]
        raise RegistryDeniedError(f"{program} failed for {host}: {output}", remedy="log in again with that helper")
    try:
        reply = _mapping(json.loads(text))
    except ValueError:
        raise RegistryDeniedError(f"{program} printed invalid JSON for {host}", remedy="fix that program") from None
    username, secret = str(reply.get("Username", "")), str(reply.get("Secret", ""))
    return Credentials(identity_token=secret) if username == _TOKEN_USER else Credentials(username, secret)
