"""Measured process of the pull benchmark: one pull, or one stage of it. Prints one JSON line.

    python -m scripts.lib.bench.stages pull HOST DATA_DIR REFERENCE
    python -m scripts.lib.bench.stages download|digest|write HOST DATA_DIR REFERENCE

A stage works on an image that is complete below DATA_DIR. It reads its input into memory before its clock starts.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import web

from agent.config import Config, HostConfig, ImagesConfig, RegistryConfig
from agent.images.chunk_digests import zero_digests
from agent.images.chunk_writers import ChunkWriter, RawWriter
from agent.images.concurrency import run_all_or_raise_first
from agent.images.disk_files import data_runs, start_writeback
from agent.images.download import Downloader
from agent.images.files import pread_into, pwrite_all
from agent.images.manifest import Manifest, parse_manifest
from agent.images.plan import Fetch, make_plan, outline_chunks
from agent.images.pull_progress import PullProgressTracker
from agent.images.reference import parse_reference
from agent.images.service import ImageService, open_images

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

_PIECE_BYTES = 1 << 20


class Clock:
    """Wall time and CPU time of this process since the object was created."""

    def __init__(self) -> None:
        self._wall_s = time.monotonic()
        self._cpu_s = time.process_time()

    def read(self) -> dict[str, float]:
        """Return both times, and the peak memory of the process in MiB."""
        return {
            "wall_s": time.monotonic() - self._wall_s,
            "cpu_s": time.process_time() - self._cpu_s,
            "peak_mib": _peak_kib() / 1024,
        }


def _peak_kib() -> int:
    """Return the peak memory of this process. `getrusage` also counts the parent's memory before the exec."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise SystemExit("/proc/self/status has no VmHWM")


async def pull(images: ImageService, reference: str) -> dict[str, Any]:
    """Pull as the agent does, with a `/livez` server on the same event loop."""
    digest = await images.resolve(reference)
    runner = await _serve_livez()
    port = runner.addresses[0][1]
    print(json.dumps({"livez_port": port}), flush=True)  # noqa: T201 - the parent starts to poll now
    clock = Clock()
    await images.pull(reference, digest)
    figures: dict[str, Any] = clock.read()
    await runner.cleanup()
    return figures


async def download(images: ImageService, reference: str) -> dict[str, Any]:
    """Fetch every chunk as a pull does, and discard it."""
    fetches = _fetches(await _manifest(images, reference))
    place = images.repositories.open(parse_reference(reference))
    downloader = Downloader(place, images.tools, PullProgressTracker(reference, ""))
    queue = iter(fetches)

    async def drop(_: memoryview) -> None:
        return None

    async def worker() -> None:
        for fetch in queue:
            await downloader.whole(fetch.blob, drop)

    clock = Clock()
    await run_all_or_raise_first([worker() for _ in range(images.tools.streams)])
    return clock.read()


async def digest(images: ImageService, reference: str) -> dict[str, Any]:
    """Hash and decode every chunk from memory; write to /dev/null."""
    fetches = _fetches(await _manifest(images, reference))
    place = images.repositories.open(parse_reference(reference))
    downloader = Downloader(place, images.tools, PullProgressTracker(reference, ""))
    blobs = [await downloader.into_memory(fetch.blob) for fetch in fetches]
    null = os.open(os.devnull, os.O_WRONLY)

    def work(pair: tuple[Fetch, bytearray]) -> None:
        fetch, blob = pair
        writer = ChunkWriter(fetch, RawWriter(fetch, null), images.tools.codec)
        writer.feed(memoryview(blob))
        writer.finish()

    return _in_threads(work, list(zip(fetches, blobs, strict=True)))


async def write(images: ImageService, reference: str) -> dict[str, Any]:
    """Write the image's data from memory to a new sparse file, with fsync.

    Uses one thread: two are not faster, and use more CPU time because both wait for the lock of the same file.
    """
    manifest = await _manifest(images, reference)
    local = await images.local(manifest.digest)
    pieces = list(_data(local.disk, manifest))
    target = images.store.root.parent / "written.img"
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.ftruncate(descriptor, manifest.disk_bytes)

    def work(piece: tuple[int, bytearray]) -> None:
        pwrite_all(descriptor, memoryview(piece[1]), piece[0])
        start_writeback(descriptor, piece[0], len(piece[1]))

    figures = _in_threads(work, pieces, lambda: os.fsync(descriptor), threads=1)
    os.close(descriptor)
    target.unlink()
    return figures


STAGES: dict[str, Callable[[ImageService, str], Awaitable[dict[str, Any]]]] = {
    "pull": pull,
    "download": download,
    "digest": digest,
    "write": write,
}


def _in_threads(
    work: Callable[[Any], None],
    items: list[Any],
    last: Callable[[], None] = lambda: None,
    *,
    threads: int | None = None,
) -> dict[str, Any]:
    with ThreadPoolExecutor(threads or os.cpu_count()) as executor:
        executor.submit(hashlib.sha256).result()  # start a thread before the clock starts
        clock = Clock()
        list(executor.map(work, items))
        last()
        return clock.read()


def _data(disk: Path, manifest: Manifest) -> Iterable[tuple[int, bytearray]]:
    with disk.open("rb") as file:
        for offset in range(0, manifest.disk_bytes, _PIECE_BYTES):
            piece = bytearray(min(_PIECE_BYTES, manifest.disk_bytes - offset))
            pread_into(file.fileno(), memoryview(piece), offset)
            for start, end in data_runs(piece, 0, len(piece)):
                yield offset + start, piece[start:end]


async def _manifest(images: ImageService, reference: str) -> Manifest:
    return parse_manifest(
        await images.repositories.open(parse_reference(reference)).manifest(parse_reference(reference).target)
    )


def _fetches(manifest: Manifest) -> tuple[Fetch, ...]:
    return make_plan(manifest, outline_chunks(manifest, zero_digests=zero_digests(manifest)).missing).fetches


async def _serve_livez() -> web.AppRunner:
    async def livez(_: web.Request) -> web.Response:
        return web.json_response({"ok": True})

    app = web.Application()
    app.router.add_get("/livez", livez)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner


async def _main(stage: str, host: str, data_dir: str, reference: str) -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    registries = {host: RegistryConfig(insecure=True)}
    config = Config(
        data_dir=Path(data_dir), host=HostConfig(disk_reserve_mib=0), images=ImagesConfig(registries=registries)
    )
    async with open_images(config) as images:
        print(json.dumps(await STAGES[stage](images, reference)), flush=True)  # noqa: T201 - the result


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
