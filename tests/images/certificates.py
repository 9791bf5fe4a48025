"""Self-signed certificates for servers of tests."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


async def certificate(folder: Path) -> tuple[Path, Path]:
    """Create a self-signed certificate for 127.0.0.1. Return the paths of it and of its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=tests -keyout {key} -out {cert}"
    options = ["-addext", "subjectAltName=IP:127.0.0.1"]
    pipe = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec("openssl", *command.split(), *options, stderr=pipe)
    assert await asyncio.wait_for(process.wait(), 30) == 0
    return cert, key


def server_context(cert: Path, key: Path) -> ssl.SSLContext:
    """Return the TLS context of a server with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context
