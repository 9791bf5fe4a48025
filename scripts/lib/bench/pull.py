"""Pull benchmark: ratios measured side by side in one run; see `scripts/bench/pull`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import psutil
import structlog

from agent.config import Config, ImagesConfig, RegistryConfig
from agent.images.blockindex import INDEX_TYPE, decode_index
from agent.images.download import Downloader
from agent.images.manifest import parse_manifest
from agent.images.pull_progress import PullProgressTracker
from agent.images.reference import parse_reference
from agent.images.referrers import find_attached
from agent.images.service import ImageService, open_images
from agent.images.vmconfig import Hardware
from scripts.lib.bench.image_diff import Version, changed_bytes, whole_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REPOSITORY: Final = Path(__file__).resolve().parents[3]
CACHE: Final = REPOSITORY / ".cache" / "bench"
MIB: Final = 1 << 20
NAME: Final = "bench/debian"
LIVEZ_PERIOD_S: Final = 0.01
MEMORY_BYTES: Final = 1500 * MIB
"""More memory than any measured process needs with its page cache."""
KILL_AT: Final = 0.4
UNITS_MIB: Final = (1, 16, 64, 512)
PULLS: Final = ("pull", "polled", "bump")

Document = dict[str, Any]


class Registry:
    """A docker-registry process with an access log."""

    def __init__(self, host: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.host = host
        self._process = psutil.Process(process.pid)
        self._log = log

    def reference(self, tag: str) -> str:
        """Return the reference of a version."""
        return f"{self.host}/{NAME}:{tag}"

    def cpu_s(self) -> float:
        """Return the CPU seconds that the registry has used."""
        times = self._process.cpu_times()
        return times.user + times.system

    def blob_gets(self, since: int = 0) -> list[str]:
        """Return the digests of the requested blobs, from byte `since` of the log."""
        return re.findall(r'"GET /v2/\S+/blobs/(sha256:[0-9a-f]{64})', self._log.read_text()[since:])

    def blob_bytes(self, since: int = 0) -> int:
        """Return the bytes of the served blobs, from byte `since` of the log."""
        served = re.findall(r'"GET /v2/\S+/blobs/\S+ HTTP/1.1" 20\d (\d+)', self._log.read_text()[since:])
        return sum(map(int, served))

    def log_bytes(self) -> int:
        """Return the current length of the log."""
        return self._log.stat().st_size


@asynccontextmanager
async def run_registry(folder: Path) -> AsyncIterator[Registry]:
    """Run docker-registry over a folder on a free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    (folder / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nhttp: {{addr: {host}}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}}}}}\n"
    )
    log = folder / "access.log"
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            "docker-registry", "serve", str(folder / "config.yml"), stdout=file, stderr=subprocess.DEVNULL
        )
    try:
        await _wait_until_listening(f"http://{host}/v2/")
        yield Registry(host, process, log)
    finally:
        process.terminate()
        await process.wait()


async def measure(rounds: int, work: Path) -> Document:
    """Measure all rounds and return the raw numbers."""
    disks = [build_disk(1), build_disk(2)]
    (work / "registry").mkdir()
    async with run_registry(work / "registry") as registry:
        config = Config(data_dir=work / "pusher", images=ImagesConfig(registries=_insecure(registry.host)))
        async with open_images(config) as images:
            for tag, disk in zip(("v1", "v2"), disks, strict=True):
                await images.push(disk, registry.reference(tag), hardware=Hardware())
            versions = [await _version(images, registry.reference(tag)) for tag in ("v1", "v2")]
        raw: Document = {"machine": _machine(), "rounds": [], "change": _change(*versions)}
        for number in range(rounds):
            _log(f"round {number + 1} of {rounds}")
            raw["rounds"].append(await _round(registry, work))
        raw["resume"] = await _resume(registry, work)
    return raw


async def _round(registry: Registry, work: Path) -> Document:
    data = work / "data"
    shutil.rmtree(data, ignore_errors=True)
    os.sync()
    await _settle()
    found: Document = {"pull": await _pull(registry, data, "v2")}
    shutil.rmtree(data)
    await _settle()
    found["polled"] = await _pull(registry, data, "v2", poll_livez=True)
    for stage in ("download", "digest", "write"):
        await _settle()
        before_s = registry.cpu_s()
        found[stage] = await _child(stage, registry.host, data, registry.reference("v2"))
        found[stage]["registry_cpu_s"] = registry.cpu_s() - before_s
    await _settle()
    found["skopeo"] = _skopeo(registry.reference("v2"), work / "skopeo")
    shutil.rmtree(data)
    await _pull(registry, data, "v1")
    await _settle()
    since = registry.log_bytes()
    found["bump"] = await _pull(registry, data, "v2")
    found["bump"]["moved_bytes"] = registry.blob_bytes(since)
    found["bump"]["requests"] = len(registry.blob_gets(since))
    return found


async def _settle() -> None:
    """Wait for the disk and allocate memory once, so that the next measurement starts from the same state.

    A hypervisor reclaims free memory within seconds, and the next process to touch it waits. Without this, the time of
    a measurement depends on how long ago the previous one ended.
    """
    os.sync()
    touch = f"import mmap; m = mmap.mmap(-1, {MEMORY_BYTES}); [m.__setitem__(at, 1) for at in range(0, len(m), 4096)]"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", touch)
    await process.wait()


async def _pull(registry: Registry, data: Path, tag: str, *, poll_livez: bool = False) -> Document:
    """Pull in a separate process; with `poll_livez`, poll its `/livez` during the pull.

    Pulls that are compared with other commands are not polled: polling uses a tenth of a core, and the others have no
    such load.
    """
    before_s = registry.cpu_s()
    async with _process("pull", registry.host, data, registry.reference(tag)) as process:
        port = json.loads(await _line(process))["livez_port"]
        latencies: list[float] = []
        probe_runner = asyncio.create_task(_poll_livez(port, latencies)) if poll_livez else None
        figures: Document = json.loads(await _line(process))
        if probe_runner is not None:
            probe_runner.cancel()
            await asyncio.gather(probe_runner, return_exceptions=True)
    return {**figures, "registry_cpu_s": registry.cpu_s() - before_s, "livez_s": latencies}


async def _poll_livez(port: int, latencies: list[float]) -> None:
    async with aiohttp.ClientSession() as session:
        while True:
            started_s = time.monotonic()
            async with session.get(f"http://127.0.0.1:{port}/livez") as response:
                await response.read()
            latencies.append(time.monotonic() - started_s)
            await asyncio.sleep(LIVEZ_PERIOD_S)


async def _resume(registry: Registry, work: Path) -> Document:
    """Kill a pull at about 40 % and pull again; count the chunks that were requested twice."""
    data = work / "resumed"
    start = registry.log_bytes()
    half = KILL_AT * len(set(registry.blob_gets()))
    async with _process("pull", registry.host, data, registry.reference("v2")) as process:
        while len(set(registry.blob_gets(start))) < half:  # noqa: ASYNC110 - the registry's log is a file
            await asyncio.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        await process.wait()
    middle = registry.log_bytes()
    (stage,) = (data / "images" / ".staging").iterdir()
    journaled = len((stage / "journal").read_text().splitlines()) - 1
    before = set(registry.blob_gets(start))
    await _pull(registry, data, "v2")
    again = before & set(registry.blob_gets(middle))
    not_chunks = 3  # VM configuration, NVRAM and block index
    return {"journaled_chunks": journaled, "refetched_chunks": max(0, len(again) - not_chunks)}


def summary(raw: Document) -> Document:
    """Return the ratios, from the medians of all rounds."""
    rounds, change = raw["rounds"], raw["change"]
    pull_s = _median(rounds, "pull", "wall_s")
    floor_s = floor(raw)
    latencies = sorted(latency for found in rounds for latency in found["polled"]["livez_s"])
    moved = _median(rounds, "bump", "moved_bytes")
    return {
        "vs_skopeo": round(_median(rounds, "skopeo", "wall_s") / pull_s, 2),
        "vs_floor": round(floor_s / pull_s, 2),
        "bump_vs_changed": round(moved / change["changed_bytes"], 3),
        "bump_vs_512MiB": round(change["whole_512MiB_bytes"] / moved, 2),
        "peak_mb": round(max(found[kind]["peak_mib"] for found in rounds for kind in PULLS) * MIB / 1e6),
        "livez_p99_ms": round(latencies[int(len(latencies) * 0.99)] * 1000, 1),
        "resume_refetched_chunks": raw["resume"]["refetched_chunks"],
    }


def floor(raw: Document, *, registry: bool = True) -> float:
    """Return the minimum time of a pull on this machine: its slowest stage, or all stages on all cores.

    The registry runs on the same cores, so its CPU time for the download is included, unless `registry` is false.
    """
    rounds = raw["rounds"]
    stages = ("download", "digest", "write")
    slowest_s = max(_median(rounds, stage, "wall_s") for stage in stages)
    work_s = sum(_median(rounds, stage, "cpu_s") for stage in stages)
    if registry:
        work_s += _median(rounds, "download", "registry_cpu_s")
    return max(slowest_s, work_s / int(raw["machine"]["cores"]))


def build_disk(version: int) -> Path:
    """Return a real Debian disk from the cache, or build it. Version 2 is version 1 with git installed."""
    disk = CACHE / f"debian-v{version}.img"
    if not disk.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        _log(f"building {disk.name}")
        more = [] if version == 1 else ["--from", str(build_disk(1)), "--add", "git"]
        command = [str(REPOSITORY / "scripts" / "demo-image"), "debian", "--version", str(version), *more, str(disk)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return disk


def _change(old: Version, new: Version) -> Document:
    whole = {f"whole_{unit}MiB_bytes": whole_bytes(new, unit * MIB, old) for unit in UNITS_MIB}
    image_bytes = sum(length for _, _, length in new.blocks())
    return {"image_bytes": image_bytes, "changed_bytes": changed_bytes(new, old), **whole}


async def _version(images: ImageService, reference: str) -> Version:
    place = images.repositories.open(parse_reference(reference))
    manifest = parse_manifest(await place.manifest(parse_reference(reference).target))
    blob = await find_attached(place, manifest.digest, INDEX_TYPE)
    assert blob is not None
    raw = await Downloader(place, images.tools, PullProgressTracker(reference, manifest.digest)).into_memory(blob)
    return Version(manifest, decode_index(bytes(raw), manifest))


def _skopeo(reference: str, target: Path) -> Document:
    shutil.rmtree(target, ignore_errors=True)
    started_s = time.monotonic()
    command = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{reference}", f"dir:{target}"]
    subprocess.run(command, check=True)
    return {"wall_s": time.monotonic() - started_s}


async def _child(stage: str, host: str, data: Path, reference: str) -> Document:
    async with _process(stage, host, data, reference) as process:
        figures: Document = json.loads(await _line(process))
    return figures


@asynccontextmanager
async def _process(stage: str, host: str, data: Path, reference: str) -> AsyncIterator[asyncio.subprocess.Process]:
    command = [sys.executable, "-m", "scripts.lib.bench.stages", stage, host, str(data), reference]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, cwd=REPOSITORY)
    try:
        yield process
    finally:
        if process.returncode is None:
            await process.wait()


async def _line(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise SystemExit(f"a measured process ended early with {await process.wait()}")
    return line


async def _wait_until_listening(url: str) -> None:
    async with asyncio.timeout(20), aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(url):
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.02)


def _insecure(host: str) -> dict[str, RegistryConfig]:
    return {host: RegistryConfig(insecure=True)}


def _machine() -> Document:
    return {"cores": os.cpu_count(), "kernel": os.uname().release, "load": os.getloadavg()[0]}


def _median(rounds: list[Document], kind: str, key: str) -> float:
    return float(statistics.median(found[kind][key] for found in rounds))


def _table(raw: Document) -> str:
    rounds, change = raw["rounds"], raw["change"]
    rows = [
        ("cold pull", f"{_median(rounds, 'pull', 'wall_s'):.2f} s"),
        ("skopeo copy docker:// dir:", f"{_median(rounds, 'skopeo', 'wall_s'):.2f} s"),
        ("floor", f"{floor(raw):.2f} s"),
        ("  without the registry's work", f"{floor(raw, registry=False):.2f} s"),
        *(
            (
                f"  {stage} alone",
                f"{_median(rounds, stage, 'wall_s'):.2f} s, {_median(rounds, stage, 'cpu_s'):.2f} s CPU",
            )
            for stage in ("download", "digest", "write")
        ),
        ("  registry's CPU for the download", f"{_median(rounds, 'download', 'registry_cpu_s'):.2f} s"),
        ("image, compressed", f"{change['image_bytes'] / 1e6:.1f} MB"),
        ("bump, moved", f"{_median(rounds, 'bump', 'moved_bytes') / 1e6:.1f} MB"),
        ("  requests", f"{_median(rounds, 'bump', 'requests'):.0f}"),
        ("  time", f"{_median(rounds, 'bump', 'wall_s'):.2f} s"),
        ("  changed 64 KiB blocks", f"{change['changed_bytes'] / 1e6:.1f} MB"),
        *(
            (f"  whole {unit} MiB chunks", f"{change[f'whole_{unit}MiB_bytes'] / 1e6:.1f} MB")
            for unit in (1, 16, 64, 512)
        ),
    ]
    return "\n".join(f"{name:<34} {value}" for name, value in rows)


def _log(text: str) -> None:
    sys.stderr.write(f"bench: {text}\n")
    sys.stderr.flush()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="scripts/bench/pull", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print only the last line")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=CACHE / "pull.json")
    options = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        raw = asyncio.run(measure(options.rounds, Path(work)))
    found = summary(raw)
    options.out.write_text(json.dumps({"summary": found, **raw}, indent=1))
    if not options.json:
        sys.stdout.write(f"{_table(raw)}\n")
    sys.stdout.write(f"{json.dumps(found)}\n")


if __name__ == "__main__":
    main()
