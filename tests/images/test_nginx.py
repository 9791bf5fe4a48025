"""A real nginx in front of a real docker-registry: TLS, compressed answers, and the header that people forget."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from agent.config import RegistryConfig
from agent.images.errors import RegistryError
from agent.images.vmconfig import Hardware
from tests.images.certificates import certificate
from tests.images.disks import sha256_of
from tests.support.registry import RegistryProcess, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.images.conftest import MakeService

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/bin")
FORWARDED = "proxy_set_header X-Forwarded-Proto $scheme;"

pytestmark = [pytest.mark.registry, pytest.mark.skipif(NGINX is None, reason="nginx is not installed")]


def configuration(folder: Path, port: int, upstream: str, headers: str) -> str:
    return f"""
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off; client_max_body_size 0; gzip on; gzip_min_length 0; gzip_types *; gzip_proxied any;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{
    listen 127.0.0.1:{port} ssl; ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
    location / {{ proxy_pass http://{upstream}; proxy_set_header Host $http_host; {headers} }}
  }}
}}
"""


@asynccontextmanager
async def run_nginx(folder: Path, upstream: str, headers: str = FORWARDED) -> AsyncIterator[tuple[str, RegistryConfig]]:
    """Run nginx in front of `upstream`. Yield its host and the settings of a client."""
    cert, _ = await certificate(folder)
    port = free_port()
    path = folder / "nginx.conf"
    path.write_text(configuration(folder, port, upstream, headers))
    assert NGINX is not None
    process = await asyncio.create_subprocess_exec(NGINX, "-c", str(path), stderr=subprocess.DEVNULL)
    try:
        async with asyncio.timeout(10):
            while process.returncode is None:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.02)
        yield f"127.0.0.1:{port}", RegistryConfig(ca_file=cert)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await asyncio.wait_for(process.wait(), 10)


async def test_image_is_pushed_and_pulled_through_nginx(
    registry: RegistryProcess, make_service: MakeService, disk: Path, tmp_path: Path
) -> None:
    async with run_nginx(tmp_path, registry.host) as (host, settings):
        images = await make_service(host, registry=settings)
        reference = f"{host}/ci/debian:v1"
        digest = await images.push(disk, reference, hardware=Hardware())
        assert await images.resolve(reference) == digest
        await images.pull(reference, digest)
        assert sha256_of((await images.local(digest)).disk) == sha256_of(disk)


async def test_push_is_refused_when_nginx_does_not_forward_the_scheme(
    registry: RegistryProcess, make_service: MakeService, disk: Path, tmp_path: Path
) -> None:
    """The registry then names http locations; the disk would be sent in clear text."""
    async with run_nginx(tmp_path, registry.host, headers="") as (host, settings):
        images = await make_service(host, registry=settings)
        with pytest.raises(RegistryError, match="from https to http") as raised:
            await images.push(disk, f"{host}/ci/debian:v1", hardware=Hardware())
        assert "X-Forwarded-Proto" in raised.value.remedy
        assert registry.blobs() == set()
