"""Hostile API client: sends malformed requests as fast as four connections allow. Runs as a separate process."""

from __future__ import annotations

import asyncio
import sys
from typing import Final

CONNECTIONS: Final = 4
MALFORMED: Final = (
    b"\x00\x01\x02\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 20000 + b"\r\n\r\n",
    b"POST /v1/leases HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
)


async def attack(port: int, count: int) -> None:
    """Send `count` malformed requests to a port of this host, and read each response to its end."""

    async def send(share: range) -> None:
        for number in share:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(MALFORMED[number % len(MALFORMED)])
            await reader.read()
            writer.close()

    await asyncio.gather(*(send(range(first, count, CONNECTIONS)) for first in range(CONNECTIONS)))


if __name__ == "__main__":
    asyncio.run(attack(int(sys.argv[1]), int(sys.argv[2])))
