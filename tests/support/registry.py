"""Fixtures: a real docker-registry process on a free loopback port, open or behind a password."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

USER = "builder"
PASSWORD = "secret"
# bcrypt of PASSWORD at its lowest cost: docker-registry supports no other hash.
HTPASSWD = f"{USER}:$2b$04$cdQ2vY6ecHPiAEmAs9Cw6u4FUklLiFO5BK4nHEsIHhieJdSJL9xoG\n"

_START_DEADLINE_S = 20.0


@dataclass(frozen=True)
class RegistryProcess:
    """A running docker-registry; `host` is what references begin with."""

    host: str
    root: Path

    def blobs(self) -> set[str]:
        """Return the digests of all stored blobs."""
        folder = self.root / "docker" / "registry" / "v2" / "blobs" / "sha256"
        return {f"sha256:{path.parent.name}" for path in folder.glob("*/*/data")}


@pytest_asyncio.fixture
async def registry(tmp_path: Path) -> AsyncIterator[RegistryProcess]:
    """An open registry."""
    async with run_registry(tmp_path / "registry") as running:
        yield running


@pytest_asyncio.fixture
async def password_registry(tmp_path: Path) -> AsyncIterator[RegistryProcess]:
    """A registry that requires USER and PASSWORD."""
    htpasswd = tmp_path / "htpasswd"
    htpasswd.write_text(HTPASSWD)
    async with run_registry(tmp_path / "registry", htpasswd=htpasswd) as running:
        yield running


@contextlib.asynccontextmanager
async def run_registry(
    root: Path, *, htpasswd: Path | None = None, token_realm: str = "", certificates: Path | None = None
) -> AsyncIterator[RegistryProcess]:
    """Run docker-registry over `root`. With `token_realm` it requires Bearer tokens signed by `certificates`."""
    root.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config = root / "config.yml"
    config.write_text(_config(root, port, htpasswd, token_realm, certificates))
    with (root / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "docker-registry", "serve", str(config), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        await _listening(process, port, root / "log")
        yield RegistryProcess(f"127.0.0.1:{port}", root)
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 10)


def free_port() -> int:
    """Return a loopback port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _config(root: Path, port: int, htpasswd: Path | None, token_realm: str, certificates: Path | None) -> str:
    text = f"""
version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""
    if htpasswd is not None:
        text += f"auth: {{htpasswd: {{realm: tests, path: {htpasswd}}}}}\n"
    if token_realm:
        token = f"realm: {token_realm}, service: tests, issuer: tests, rootcertbundle: {certificates}"
        text += f"auth: {{token: {{{token}}}}}\n"
    return text


async def _listening(process: asyncio.subprocess.Process, port: int, log: Path) -> None:
    async with asyncio.timeout(_START_DEADLINE_S):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                await writer.wait_closed()
                return
            if process.returncode is not None:
                pytest.fail(f"docker-registry ended: {log.read_text()}")
            await asyncio.sleep(0.02)
