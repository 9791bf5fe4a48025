"""A registry that answers at random, from a list of odd values: every call ends in a result or a named error."""

from __future__ import annotations

import asyncio
import gc
import random
from typing import TYPE_CHECKING, Any, Final

import pytest

from agent.config import RegistryConfig
from agent.images.errors import ImageError
from agent.images.manifest import Blob
from agent.images.reference import parse_reference
from agent.images.referrers import find_attached
from agent.images.repositories import Repositories
from agent.images.sources.registry_http import RegistryTimeouts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.images.sources.contract import Repository

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

ROUNDS: Final = 40
TIMEOUTS: Final = RegistryTimeouts(connect_s=1, stall_s=0.1, answer_s=0.5)
SOME: Final = "sha256:" + "a" * 64
BLOB: Final = Blob(SOME, 10)
STATUSES: Final = (
    *(200, 200, 200, 201, 202, 204, 206, 206, 301, 302, 307, 308, 304, 400, 401, 401, 403),
    *(404, 405, 407, 416, 418, 429, 429, 500, 503, 101, 100, 103, 999),
)
HEADERS: Final = [
    *(b"Location", b"Retry-After", b"WWW-Authenticate", b"Content-Range", b"Content-Encoding", b"Content-Type"),
    *(b"Docker-Content-Digest", b"Set-Cookie", b"Link", b"Connection", b"Transfer-Encoding", b"Content-Length"),
    *(b"OCI-Subject", b"Upgrade", b"Warning"),
]
VALUES: Final = [
    *(b"", b"\xff\xfe", b"0", b"-1", b"9" * 400, b"9" * 5000, b"\x01\x02", b"//", b"///x", b"/v2/", b"?", b"#"),
    *(b"http://127.0.0.1:99999/", b"http://" + b"a" * 64 + b"/", b"http://[::1", b"http://[fe80::1%25eth0]/"),
    *(b"http://a..b/", b"http://127.0.0.1:PORT/x", b"http://169.254.169.254/", b"http://u:p@127.0.0.1:PORT/"),
    *(b"bytes 0-9/10", b"bytes 0-0/*", b"bytes \xd9\xa3-4/5", b"gzip", b"br", b"deflate", b"gzip, gzip", b"chunked"),
    *(b"Bearer", b'Bearer realm="http://127.0.0.1:PORT/token"', b"Basic", b"Basic realm=x", b"close", b"keep-alive"),
    *(b'Bearer realm="http://127.0.0.1:PORT/token",service="\xff"', b"Mon, 99 Foo", SOME.encode(), b"sha256:\xff"),
    *(b"Mon, 01 Jan 2024 00:00:00 +99999999999999999999", b"text/html; charset=\xff", b"a=b; Max-Age=x" * 50),
]
BODIES: Final = [
    *(b"", b"{}", b"[", b"[" * 100_000, b"\xff" * 100, b"\x1f\x8b\x08garbage", b"9" * 5000, b"NaN", b"null"),
    *(b'{"token":"t","expires_in":' + b"9" * 400 + b"}", b'{"token":"\\ud800"}', b'{"token":"ok"}'),
    b'{"manifests":[{"digest":"' + SOME.encode() + b'","artifactType":"t"}]}',
    b'{"manifests":[{"digest":1,"artifactType":"t"},1,null]}',
    b'{"subject":{"digest":"' + SOME.encode() + b'"},"layers":[{"digest":"' + SOME.encode() + b'","size":1e999}]}',
]


def answer(chance: random.Random, port: int) -> bytes:
    """Return the bytes of a random answer. `PORT` in its values is the registry's own."""
    body = chance.choice(BODIES)
    headers = [(chance.choice(HEADERS), chance.choice(VALUES)) for _ in range(chance.randrange(4))]
    if not any(name in (b"Content-Length", b"Transfer-Encoding") for name, _ in headers):
        headers.append((b"Content-Length", b"%d" % len(body)))
    lines = [b"%s: %s" % (name, value.replace(b"PORT", b"%d" % port)) for name, value in headers]
    start = b"HTTP/1.1 %d %s" % (chance.choice(STATUSES), chance.choice([b"x", b"\xff", b""]))
    return b"\r\n".join([start, *lines, b"", body])


async def discard(_piece: memoryview) -> None:
    """Take a piece of a blob."""


def calls(repository: Repository) -> list[Callable[[], Awaitable[Any]]]:
    return [
        lambda: repository.digest("v1"),
        lambda: repository.manifest("v1"),
        lambda: repository.read(BLOB, 0, 10, discard),
        lambda: repository.read(BLOB, 2, 3, discard),
        lambda: repository.has(BLOB),
        lambda: repository.put(BLOB, b"0123456789"),
        lambda: repository.mount(BLOB, "x/y"),
        lambda: repository.put_manifest(b"{}", media_type="x", tag="t"),
        lambda: find_attached(repository, SOME, "t"),
    ]


@pytest.mark.parametrize("seed", range(2))
async def test_random_answer_ends_in_a_result_or_a_named_error(seed: int) -> None:
    chance = random.Random(seed)
    leaks: list[str] = []
    errors: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: leaks.append(context["message"]))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chance.random() < 0.7:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer(chance, writer.get_extra_info("sockname")[1]))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client left
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for number in range(ROUNDS):
            login = {"username": "u", "password": "p"} if number % 2 else {}
            settings = {host: RegistryConfig.model_validate({"insecure": True, **login})}
            repositories = Repositories(settings, timeouts=TIMEOUTS, credential_files=())
            for call in calls(repositories.open(parse_reference(f"{host}/a/b:v1"))):
                try:
                    async with asyncio.timeout(20):
                        await call()
                except ImageError as error:
                    errors.append(error.message)
            await repositories.close()
    gc.collect()
    assert len(errors) > ROUNDS
    assert all(errors)
    assert [leak for leak in leaks if "Unclosed" in leak] == []
