"""API benchmark, see `scripts/bench/api`: polls compared with a bare handler, an attack, and the fan-out of events."""

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
SAMPLE_S: Final = 0.5
"""Short, so that other load on the machine affects both servers."""
NO_LIMIT: Final = "rate_per_s = 1e9\nrate_burst = 1000000000\n"
"""One caller simulates hundreds. The cost of the rate limiter is still included."""
REPORTED: Final = ("host_vs_bare", "not_modified_vs_bare", "sse_fanout_ms", "sse_mb")
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
class Sample:
    """Result of one sample: requests per second, number of 304 responses, number of all responses."""

    per_s: float
    not_modified: int
    answers: int


async def poll_server(port: int, path: str, *, etag: bool = False) -> Sample:
    """Poll a server on a few connections without pause. With `etag`, send the last entity tag in `If-None-Match`."""
    plain = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    began_s = time.perf_counter()

    async def poll() -> tuple[int, int]:
        request, answers, not_modified = f"{plain}\r\n".encode(), 0, 0
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < began_s + SAMPLE_S:
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

    counts = await asyncio.gather(*(poll() for _ in range(CONNECTIONS)))
    answers, not_modified = (sum(column) for column in zip(*counts, strict=True))
    return Sample(answers / (time.perf_counter() - began_s), not_modified, answers)


def _header(head: bytes, name: str) -> str:
    """Return a header of a response head."""
    lines = (line.partition(": ") for line in head.decode().split("\r\n"))
    return next(value for header, _, value in lines if header.lower() == name)


async def against_bare(host: Host, port: int, scratch: Path, rounds: int) -> dict[str, float]:
    """Poll the agent and a bare handler alternately, and compare their medians."""
    async with host.http.get("/v1/host") as response:
        (scratch / "body.json").write_bytes(await response.read())
    samples: dict[str, list[Sample]] = {"bare": [], "host": [], "not_modified": []}
    async with _bare(scratch / "body.json") as bare_port:
        for _ in range(1 + rounds):
            samples["bare"].append(await poll_server(bare_port, "/"))
            samples["host"].append(await poll_server(port, "/v1/host"))
            samples["not_modified"].append(await poll_server(port, "/v1/host", etag=True))
    measured = {name: these[1:] for name, these in samples.items()}  # a new process is slower
    for name, these in measured.items():
        _log(f"{name:>12} requests a second: {' '.join(f'{one.per_s:.0f}' for one in these)}")
    responses = sum(one.answers for one in measured["not_modified"])
    _log(f"{responses - sum(one.not_modified for one in measured['not_modified'])} of {responses} were not 304")
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
        await process.stdout.readuntil(b"://127.0.0.1:")
        yield int((await process.stdout.readline()).split()[0])
    finally:
        process.terminate()
        await process.wait()


async def fan_out(host: Host, port: int) -> dict[str, float]:
    """Measure the time until the last of many subscribers receives an event, and the memory they cost."""
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
    cordoning = asyncio.create_task(host.call("POST", "/v1/host/cordon?reason=bench"))
    await asyncio.gather(*(reader.readuntil(b"event: host-mode") for reader, _ in streams))
    took_s = time.perf_counter() - began_s
    await cordoning
    for _, writer in streams:
        writer.close()
    return {"sse_fanout_ms": round(took_s * 1000), "sse_mb": round(cost / 2**20, 1)}


async def under_attack(port: int) -> dict[str, float]:
    """Poll `/livez` while some clients send malformed requests and others never finish theirs."""
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
        assert (await reader.read()).startswith(b"HTTP/1.1 200"), "/livez did not return 200"
        writer.close()
        took_ms.append((time.perf_counter() - began_s) * 1000)
        await asyncio.sleep(0.002)
    for _, writer in slow:
        writer.close()
    p99 = statistics.quantiles(took_ms, n=100)[98]
    _log(f"/livez, polled {len(took_ms)} times; {MALFORMED} malformed requests, {SLOW} slow clients: p99 {p99:.1f} ms")
    return {"attacked_livez_p99_ms": round(p99, 1)}


async def measure(scratch: Path, rounds: int) -> dict[str, float]:
    """Start a host with two VMs and measure its API."""
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
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON line")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES if hard < 0 else min(OPEN_FILES, hard), hard))
    with tempfile.TemporaryDirectory(prefix="hearth-bench-") as scratch:
        figures = asyncio.run(measure(Path(scratch), options.rounds))
    for name, value in figures.items():
        _log(f"{name:>22} {value}")
    if options.json:
        sys.stdout.write(json.dumps({name: figures[name] for name in REPORTED}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
