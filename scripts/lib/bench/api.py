"""The API benchmark, see `scripts/bench/api`: polls against a bare handler, an attack, and the fan-out of events."""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from agent.images.service import open_images
from agent.images.vmconfig import Hardware
from scripts.lib.bench import simulated
from scripts.lib.chaos.versions import scratch_config
from scripts.lib.host import Host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CONNECTIONS: Final = 4
TURN_S: Final = 0.5
"""Short, so that what else happens on the machine meets both."""
NO_LIMIT: Final = "rate_per_s = 1e9\nrate_burst = 1000000000\n"
"""One caller here stands for hundreds. What the limit costs is measured all the same."""
PROMISED: Final = ("host_vs_bare", "not_modified_vs_bare", "sse_fanout_ms", "sse_mb")
MALFORMED: Final = 1000
SLOW: Final = 200
SUBSCRIBERS: Final = 1000
OPEN_FILES: Final = 8192

_BARE: Final = """
import sys
from aiohttp import web
body = open(sys.argv[1], "rb").read()
async def answer(request):
    return web.Response(body=body, content_type="application/json")
application = web.Application()
application.router.add_get("/", answer)
web.run_app(application, host="127.0.0.1", port=0, access_log=None, print=lambda text: print(text, flush=True))
"""


_HALVES: Final = (
    b"GET /v1/host HTTP/1.1\r\nHost: loc",
    b"POST /v1/leases HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
)


@dataclass(frozen=True)
class Turn:
    """What a server answered in one turn: requests a second, and how many of its answers were 304s."""

    per_s: float
    not_modified: int
    answers: int


async def turn(port: int, path: str, *, etag: bool = False) -> Turn:
    """Ask a server on a few connections, each again at once; with `etag` for what changed since its last answer."""
    plain = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    began_s = time.perf_counter()

    async def ask() -> tuple[int, int]:
        request, answers, not_modified = f"{plain}\r\n".encode(), 0, 0
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < began_s + TURN_S:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            answers += 1
            if head.startswith(b"HTTP/1.1 304"):
                not_modified += 1
                continue
            await reader.readexactly(int(_header(head, "content-length")))
            if etag:
                request = f"{plain}If-None-Match: {_header(head, 'etag')}\r\n\r\n".encode()
        writer.close()
        return answers, not_modified

    counts = await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))
    answers, not_modified = (sum(column) for column in zip(*counts, strict=True))
    return Turn(answers / (time.perf_counter() - began_s), not_modified, answers)


def _header(head: bytes, name: str) -> str:
    """Return a header of a response head."""
    lines = (line.partition(": ") for line in head.decode().split("\r\n"))
    return next(value for header, _, value in lines if header.lower() == name)


async def against_bare(host: Host, port: int, scratch: Path, rounds: int) -> dict[str, float]:
    """Ask agent and bare handler in turns, and compare their medians."""
    async with host.http.get("/v1/host") as response:
        (scratch / "body.json").write_bytes(await response.read())
    turns: dict[str, list[Turn]] = {"bare": [], "host": [], "not_modified": []}
    async with _bare(scratch / "body.json") as bare_port:
        for _ in range(1 + rounds):
            turns["bare"].append(await turn(bare_port, "/"))
            turns["host"].append(await turn(port, "/v1/host"))
            turns["not_modified"].append(await turn(port, "/v1/host", etag=True))
    measured = {name: these[1:] for name, these in turns.items()}  # a process that was just started is slower
    for name, these in measured.items():
        _log(f"{name:>12} requests a second: {' '.join(f'{one.per_s:.0f}' for one in these)}")
    asked = sum(one.answers for one in measured["not_modified"])
    _log(f"{asked - sum(one.not_modified for one in measured['not_modified'])} of {asked} were no 304s")
    median = {name: statistics.median(one.per_s for one in these) for name, these in measured.items()}
    return {
        "host_vs_bare": round(median["host"] / median["bare"], 2),
        "not_modified_vs_bare": round(median["not_modified"] / median["bare"], 2),
    }


@asynccontextmanager
async def _bare(body: Path) -> AsyncIterator[int]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _BARE, str(body), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        said = await process.stdout.readuntil(b"://127.0.0.1:")
        said = await process.stdout.readline()
        yield int(said.split()[0])
    finally:
        process.terminate()
        await process.wait()


async def fan_out(host: Host, port: int) -> dict[str, float]:
    """Subscribe many to the events, let one happen, and see when the last has event of it and what they cost."""
    agent = psutil.Process(host.pid)
    before = agent.memory_info().rss
    request = f"GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: text/event-stream\r\n\r\n".encode()
    streams = []
    for _ in range(SUBSCRIBERS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        await reader.readuntil(b"retry: ")
        streams.append((reader, writer))
    cost = agent.memory_info().rss - before
    began_s = time.perf_counter()
    happening = asyncio.create_task(host.call("POST", "/v1/host/cordon?reason=bench"))
    await asyncio.gather(*(reader.readuntil(b"event: host-mode") for reader, _ in streams))
    took_s = time.perf_counter() - began_s
    await happening
    for _, writer in streams:
        writer.close()
    return {"sse_fanout_ms": round(took_s * 1000), "sse_mb": round(cost / 2**20, 1)}


async def under_attack(port: int) -> dict[str, float]:
    """Ask /livez again and again while clients send what is no HTTP and others send their requests without end."""
    slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(SLOW)]
    for number, (_, writer) in enumerate(slow):
        writer.write(_HALVES[number % len(_HALVES)])
    noise = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "scripts.lib.bench.attack", str(port), str(MALFORMED), stdin=subprocess.DEVNULL
    )
    took_ms = []
    while noise.returncode is None:
        began_s = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200"), "the agent does not live"
        writer.close()
        took_ms.append((time.perf_counter() - began_s) * 1000)
        await asyncio.sleep(0.002)
    for _, writer in slow:
        writer.close()
    p99 = statistics.quantiles(took_ms, n=100)[98]
    _log(f"/livez, asked {len(took_ms)} times in {MALFORMED} malformed requests, {SLOW} slow clients: p99 {p99:.1f} ms")
    return {"attacked_livez_p99_ms": round(p99, 1)}


async def measure(scratch: Path, rounds: int) -> dict[str, float]:
    """Start an agent with two VMs and measure its API."""
    host = Host(scratch / "host")
    try:
        simulated.configure(host)
        host.config.write_text(host.config.read_text().replace("[api]\n", f"[api]\n{NO_LIMIT}"))
        reference = f"oci-layout:{scratch}/registry:1"
        async with open_images(scratch_config(scratch)) as images:
            disk = await asyncio.to_thread(simulated.tiny_disk, scratch / "disk.img")
            await images.push(disk, reference, hardware=Hardware(os="linux", arch="amd64", cpus=1, memory_mib=64))
        await host.start()
        host.assign(simulated.POOL, reference, warm=2, probes=simulated.AGENT_PROBE)
        await host.wait_until(lambda _, vms: [vm["state"] for vm in vms] == ["ready", "ready"])
        port = int((host.data_dir / "api.port").read_text())
        figures = await against_bare(host, port, scratch, rounds)
        figures |= await under_attack(port)
        return figures | await fan_out(host, port)
    finally:
        await host.close()


def _log(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="scripts/bench/api")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON line")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES if hard < 0 else min(OPEN_FILES, hard), hard))
    with tempfile.TemporaryDirectory(prefix="hearth-bench-") as scratch:
        figures = asyncio.run(measure(Path(scratch), options.rounds))
    for name, value in figures.items():
        _log(f"{name:>22} {value}")
    if options.json:
        sys.stdout.write(json.dumps({name: figures[name] for name in PROMISED}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
