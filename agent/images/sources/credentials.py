"""Credentials for registries: from Hearth's configuration, otherwise from the files of docker, podman and oras.

The files are read at each use, so that a changed password needs no restart. Helper programs (docker-credential-*) run
with a timeout, and their error output is separate from their reply. (docker/cli, "Credential stores";
containers-auth.json(5).)
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from agent.images.errors import BadImageError, RegistryDeniedError
from agent.images.manifest import parse_json
from agent.processes.command import Command, CommandError, CommandRunner

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from agent.config import RegistryConfig

log = structlog.get_logger()

HELPER_TIMEOUT_S: Final = 20.0
_MAX_FILE_BYTES: Final = 4 << 20
_NO_CREDENTIALS: Final = "credentials not found"
_TOKEN_USER: Final = "<token>"
_HUB_KEYS: Final = ("https://index.docker.io/v1/", "index.docker.io", "registry-1.docker.io", "docker.io")
"""The names under which clients store the login of Docker Hub; `docker login` uses the first."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name with its password, an identity token (an OAuth 2 refresh token), or a token of the registry."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


class CredentialStore(Protocol):
    """A source of credentials."""

    async def find(self, host: str, repository: str = "") -> Credentials | None:
        """Return the credentials for a repository of `host` (with its port if it has one), or None for anonymous use.

        Raises `RegistryDeniedError` if they cannot be read.
        """


class ConfiguredCredentials:
    """Credentials of Hearth's configuration, then those of the files, in their order."""

    def __init__(self, registries: Mapping[str, RegistryConfig], files: Sequence[Path], runner: CommandRunner) -> None:
        self._registries = registries
        self._files = [DockerCredentials(path, runner) for path in files]

    async def find(self, host: str, repository: str = "") -> Credentials | None:
        """See `CredentialStore.find`. A file or helper that fails does not hide the next one."""
        registry = self._registries.get(host)
        if registry is not None and registry.username is not None and registry.password is not None:
            return Credentials(registry.username, registry.password.get_secret_value())
        failed: RegistryDeniedError | None = None
        for file in self._files:
            try:
                if (found := await file.find(host, repository)) is not None:
                    return found
            except RegistryDeniedError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return None


class DockerCredentials:
    """One config.json of docker or auth.json of podman.

    The registry's helper of `credHelpers` comes first, then `auths`. `credsStore` is last, for registries without a
    helper of their own.
    """

    def __init__(self, path: Path, runner: CommandRunner) -> None:
        self._path = path
        self._runner = runner

    async def find(self, host: str, repository: str = "") -> Credentials | None:
        """See `CredentialStore.find`. Raises `RegistryDeniedError` if a helper fails and nothing else is found."""
        document = await asyncio.to_thread(self._load)
        names = _names(host)
        auths = _by_name(_mapping(document.get("auths")))
        failed: RegistryDeniedError | None = None
        helper = _helper(document, names)
        try:
            if (found := await self._from_helper(helper, names[:1])) is not None:
                return found
        except RegistryDeniedError as error:
            failed = error
        for name in _candidates(names, repository):
            if name in auths and (found := _from_entry(auths[name][1])) is not None:
                return found
        if failed is not None:
            raise failed
        store = document.get("credsStore")
        stored = tuple(dict.fromkeys([*(auths[name][0] for name in names if name in auths), names[0]]))
        return await self._from_helper(store if isinstance(store, str) and not helper else None, stored)

    async def _from_helper(self, helper: str | None, servers: Sequence[str]) -> Credentials | None:
        """Return what a helper stores for the first known of `servers`."""
        if not helper:
            return None
        for server in servers:
            if (found := await _run_helper(self._runner, helper, server)) is not None:
                return found
        return None

    def _load(self) -> dict[str, Any]:
        try:
            with self._path.open("rb") as file:
                content = file.read(_MAX_FILE_BYTES)
            # docker writes nothing into a new file before the first login.
            return parse_json(content.removeprefix(b"\xef\xbb\xbf"), "the file") if content.strip() else {}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, BadImageError) as error:
            log.warning("docker-config-unreadable", path=str(self._path), error=str(error))
            return {}


def _names(host: str) -> tuple[str, ...]:
    """Return the names of a registry in credential files, the one that clients store first."""
    return tuple(dict.fromkeys([*_HUB_KEYS[:1], *map(_host_of, _HUB_KEYS)])) if host == "docker.io" else (host,)


def _host_of(key: str) -> str:
    """Return the host of a key as docker compares it: without scheme, path and trailing slash."""
    return _name_of(key).partition("/")[0]


def _name_of(key: str) -> str:
    """Return a key without scheme and trailing slash. podman's keys may continue with a repository."""
    name = key.partition("://")[2] if "://" in key else key
    return re.sub(r"/v[12]/?$", "", name).rstrip("/")


def _by_name(auths: Mapping[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the keys and entries of `auths` by their names without scheme; an exact key wins."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for key, entry in sorted(auths.items(), key=lambda item: "://" not in item[0]):
        if isinstance(entry, dict):
            found[_name_of(key)] = found[key] = key, entry
    return found


def _candidates(names: Sequence[str], repository: str) -> Iterator[str]:
    """Yield the names of entries for a repository, the most specific first."""
    parts = repository.split("/") if repository else []
    for count in range(len(parts), 0, -1):
        for name in names:
            yield f"{name}/{'/'.join(parts[:count])}"
    yield from names


def _helper(document: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Return the helper for a registry: of an exact key, else of a pattern that matches its whole name."""
    helpers = {key: helper for key, helper in _mapping(document.get("credHelpers")).items() if isinstance(helper, str)}
    by_host = {_host_of(key): helper for key, helper in helpers.items()}
    exact = next((by_host[name] for name in names if name in by_host), None)
    return exact or next((helper for key, helper in helpers.items() if _matches(key, names)), None)


def _matches(pattern: str, names: Sequence[str]) -> bool:
    """Return whether a key is a pattern for one of the names: a regular expression, as in Tart, or with `*`."""
    try:
        expression = re.compile(pattern)
    except re.error:
        return any(fnmatchcase(name, pattern) for name in names)
    return any(expression.fullmatch(name) or fnmatchcase(name, pattern) for name in names)


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _from_entry(entry: Mapping[str, Any]) -> Credentials | None:
    if isinstance(token := entry.get("identitytoken"), str) and token:
        return Credentials(identity_token=token)
    if isinstance(token := entry.get("registrytoken"), str) and token:
        return Credentials(registry_token=token)
    if isinstance(auth := entry.get("auth"), str) and auth:
        try:
            # A password may contain colons; a user name may not.
            username, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        return Credentials(username, password.rstrip("\0")) if colon else None
    user, secret = entry.get("username"), entry.get("password")
    return Credentials(user, secret) if isinstance(user, str) and user and isinstance(secret, str) else None


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
        if _NO_CREDENTIALS in text.lower():
            return None
        output = (text + result.stderr.decode(errors="replace")).strip()[:500]
        raise RegistryDeniedError(f"{program} failed for {host}: {output}", remedy="log in again with that helper")
    try:
        reply = _mapping(json.loads(text))
    except (ValueError, RecursionError):
        raise RegistryDeniedError(f"{program} printed invalid JSON for {host}", remedy="fix that program") from None
    username, secret = str(reply.get("Username") or ""), str(reply.get("Secret") or "")
    if not secret:
        return None  # some helpers answer like this for a registry without a login
    return Credentials(identity_token=secret) if username == _TOKEN_USER else Credentials(username, secret)
