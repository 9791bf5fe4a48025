"""Pulls that are cancelled, killed or shared, and the files that removing and sweeping delete."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from agent.images.errors import DiskTooSmallError, ImageNotFoundError, RegistryError, StoreError
from agent.images.manifest import parse_manifest
from agent.images.space_manager import SpaceManager
from agent.processes.boot import boot_id
from tests.images.disks import MIB, push_layout, sha256_of, write_disk
from tests.images.faulty_registry import FaultyRegistry, run_faulty

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor
    from pathlib import Path

    from agent.images.manifest import Manifest
    from agent.images.service import ImageService
    from tests.images.conftest import MakeService


def staged(images: ImageService) -> list[str]:
    return sorted(path.name for path in (images.store.root / ".staging").iterdir())


def chunks_of(registry: FaultyRegistry, digest: str) -> set[str]:
    return {chunk.blob.digest for chunk in parse_manifest(registry.manifests[digest]).chunks}


async def test_callers_share_one_pull(faulty: FaultyRegistry, make_service: MakeService) -> None:
    images = await make_service(faulty.host)
    digest = await images.resolve(faulty.reference())
    await asyncio.gather(*(images.pull(faulty.reference(), digest) for _ in range(10)))
    fetched = [seen.path for seen in faulty.gets()]
    assert len(fetched) == len(set(fetched))
    seen_before = len(faulty.seen)
    await images.pull(faulty.reference(), digest)
    assert len(faulty.seen) == seen_before
    assert images.progress() == ()


async def test_two_processes_share_one_download(
    faulty: FaultyRegistry, make_service: MakeService, tmp_path: Path
) -> None:
    # Two services on one directory act like two processes: a lock belongs to its open file, not to the process.
    one = await make_service(faulty.host)
    two = await make_service(faulty.host)
    digest = await one.resolve(faulty.reference())
    await asyncio.gather(one.pull(faulty.reference(), digest), two.pull(faulty.reference(), digest))
    fetched = [seen.path for seen in faulty.gets()]
    assert len(fetched) == len(set(fetched))
    assert staged(one) == []


async def test_hanging_pull_does_not_block_another_pull(
    faulty: FaultyRegistry, make_service: MakeService, tmp_path: Path, executor: Executor
) -> None:
    other = write_disk(tmp_path / "other.img", seed=2)
    await push_layout(other, tmp_path / "other", executor, tag="v2")
    hanging = set(faulty.blobs)
    faulty.load(tmp_path / "other")
    hanging -= {f"sha256:{path.name}" for path in (tmp_path / "other" / "blobs" / "sha256").iterdir()}
    images = await make_service(faulty.host)
    first, second = await images.resolve(faulty.reference("v1")), await images.resolve(faulty.reference("v2"))
    faulty.arm("stall", times=float("inf"), only=hanging.__contains__)
    hangs = asyncio.create_task(images.pull(faulty.reference("v1"), first))
    await faulty.wait_for_blob_requests(1)
    await images.pull(faulty.reference("v2"), second)
    assert sha256_of((await images.local(second)).disk) == sha256_of(other)
    assert [progress.digest for progress in images.progress()] == [first]
    hangs.cancel()
    await asyncio.gather(hangs, return_exceptions=True)


async def test_pull_ends_when_its_last_caller_is_cancelled(faulty: FaultyRegistry, make_service: MakeService) -> None:
    images = await make_service(faulty.host)
    digest = await images.resolve(faulty.reference())
    faulty.arm("stall", times=float("inf"))
    waiters = [asyncio.create_task(images.pull(faulty.reference(), digest)) for _ in range(2)]
    await faulty.wait_for_blob_requests(1)
    waiters[0].cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiters[0]
    assert len(images.progress()) == 1
    waiters[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiters[1]
    assert images.progress() == ()
    assert await images.list() == ()


async def test_failed_pull_resumes(faulty: FaultyRegistry, make_service: MakeService, disk: Path) -> None:
    images = await make_service(faulty.host)
    digest = await images.resolve(faulty.reference())
    victim = max(faulty.blobs, key=lambda name: len(faulty.blobs[name]))
    faulty.arm("500", times=float("inf"), only=lambda name: name == victim)
    with pytest.raises(RegistryError):
        await images.pull(faulty.reference(), digest)
    faulty.armed = None
    fetched = {seen.path for seen in faulty.gets()}
    faulty.seen.clear()
    again = await make_service(faulty.host)
    await again.pull(faulty.reference(), digest)
    refetched = {seen.path for seen in faulty.gets()} & fetched - {f"/v2/tests/image/blobs/{victim}"}
    assert len(refetched) <= 2 + 1  # the two small blobs, and at most one chunk that was cancelled by the failure
    assert sha256_of((await again.local(digest)).disk) == sha256_of(disk)


PULL = """
import asyncio, sys
import structlog
from pathlib import Path
from agent.config import Config, HostConfig, ImagesConfig, RegistryConfig
from agent.images.service import open_images

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))

async def main(host, data_dir, reference):
    registries = {host: RegistryConfig(insecure=True)}
    images = ImagesConfig(registries=registries)
    config = Config(data_dir=Path(data_dir), host=HostConfig(disk_reserve_mib=0), images=images)
    async with open_images(config) as images:
        await images.pull(reference, await images.resolve(reference))

asyncio.run(main(*sys.argv[1:]))
"""


async def test_killed_pull_publishes_nothing_and_resumes(
    faulty: FaultyRegistry, make_service: MakeService, tmp_path: Path, disk: Path
) -> None:
    images = await make_service(faulty.host)
    digest = await images.resolve(faulty.reference())
    names = [name for name, content in faulty.blobs.items() if len(content) > 50_000]
    faulty.arm("stall", times=float("inf"), only=lambda name: name == names[0])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PULL, faulty.host, str(tmp_path / "data"), faulty.reference()
    )
    await faulty.wait_for_blob_requests(len(names))
    process.send_signal(signal.SIGKILL)
    await process.wait()
    assert await images.list() == ()
    assert staged(images) == [digest.removeprefix("sha256:")]
    faulty.armed = None
    await images.pull(faulty.reference(), digest)
    assert sha256_of((await images.local(digest)).disk) == sha256_of(disk)
    assert staged(images) == []


ZYGOTE = PULL.replace(
    "asyncio.run(main(*sys.argv[1:]))",
    """
import os
for _ in sys.stdin:
    pid = os.fork()
    if pid == 0:
        asyncio.run(main(*sys.argv[1:]))
        os._exit(0)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
""",
)


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_thirty_kills_cost_at_most_one_chunk_per_worker_each(
    make_service: MakeService, tmp_path: Path, executor: Executor
) -> None:
    disk = write_disk(tmp_path / "many.img", mib=160, every=1)
    digest = await push_layout(disk, tmp_path / "layout", executor, chunk_bytes=MIB // 4)
    registry = FaultyRegistry()
    registry.load(tmp_path / "layout")
    manifest = parse_manifest(registry.manifests[digest])
    chance = random.Random(30)
    images = await make_service()
    journal = images.store.staging.path / digest.removeprefix("sha256:") / "journal"
    async with run_faulty(registry):
        arguments = [registry.host, str(tmp_path / "data"), registry.reference()]
        zygote = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ZYGOTE, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        orders, reports = zygote.stdin, zygote.stdout
        assert orders is not None
        assert reports is not None

        finished: set[str] = set()
        for _ in range(30):
            registry.seen.clear()
            orders.write(b"go\n")
            pid = int(await reports.readline())
            await registry.wait_for_blob_requests(chance.randrange(3, 14))
            os.kill(pid, signal.SIGKILL)
            assert int(await reports.readline()) == signal.SIGKILL
            assert not images.store.has(digest)
            fetched = chunks_of(registry, digest) & {seen.path.rpartition("/")[2] for seen in registry.gets()}
            assert not fetched & finished
            finished = _finished(journal, manifest)
            assert len(fetched - finished) <= 8  # one chunk per worker
        assert len(finished) > 20
        orders.write(b"go\n")
        assert int(await reports.readline()) > 0
        assert int(await reports.readline()) == 0
        orders.close()
        await zygote.wait()
    assert sha256_of((await images.local(digest)).disk) == sha256_of(disk)
    assert staged(images) == []


def _finished(journal: Path, manifest: Manifest) -> set[str]:
    """Return the blobs of the chunks that a checkpoint lists as finished."""
    lines = journal.read_text().splitlines()[1:] if journal.exists() else []
    return {manifest.chunks[int(line)].blob.digest for line in lines}


def test_boot_id_is_not_empty() -> None:
    """Without a boot ID, every resumed pull would hash its chunks again."""
    assert boot_id() == boot_id() != ""


async def test_checkpoint_of_another_boot_is_verified_on_disk(
    faulty: FaultyRegistry, make_service: MakeService, disk: Path
) -> None:
    images = await make_service(faulty.host)
    digest = await images.resolve(faulty.reference())
    chunks = [name for name, content in faulty.blobs.items() if len(content) > 50_000]
    faulty.arm("500", times=float("inf"), only=lambda name: name == chunks[-1])
    with pytest.raises(RegistryError):
        await images.pull(faulty.reference(), digest)
    stage = images.store.root / ".staging" / digest.removeprefix("sha256:")
    lines = (stage / "journal").read_text().splitlines()
    assert len(lines) > 1
    header = lines[0].rsplit(" ", 1)[0]
    (stage / "journal").write_text("\n".join([f"{header} another-boot", *lines[1:]]) + "\n")
    with (stage / "disk.img").open("r+b") as file:  # data lost in a power failure
        file.seek(int(lines[1]) * MIB)
        file.write(bytes(MIB))
    faulty.armed = None
    await images.pull(faulty.reference(), digest)
    assert sha256_of((await images.local(digest)).disk) == sha256_of(disk)


async def test_remove_deletes_all_files_and_may_be_repeated(
    make_service: MakeService, tmp_path: Path, disk: Path, executor: Executor
) -> None:
    digest = await push_layout(disk, tmp_path / "layout", executor)
    reference = f"oci-layout:{tmp_path}/layout:v1"
    images = await make_service()
    await images.pull(reference, digest)
    assert await images.find(reference) == digest
    await images.remove(digest)
    await images.remove(digest)
    assert await images.list() == ()
    assert await images.find(reference) is None
    with pytest.raises(ImageNotFoundError, match="not on this host"):
        await images.local(digest)
    assert sorted(path.name for path in images.store.root.iterdir()) == [
        ".index",
        ".lock",
        ".staging",
        "references.json",
    ]
    assert staged(images) == []
    assert [path.name for path in (images.store.root / ".index").iterdir()] == ["chunks.sqlite"]


async def test_moved_tag_resolves_to_the_new_version(
    make_service: MakeService, tmp_path: Path, disk: Path, executor: Executor
) -> None:
    reference = f"oci-layout:{tmp_path}/layout:v1"
    images = await make_service()
    first = await push_layout(disk, tmp_path / "layout", executor)
    await images.pull(reference, await images.resolve(reference))
    second = await push_layout(write_disk(tmp_path / "other.img", seed=2), tmp_path / "layout", executor)
    assert await images.resolve(reference) == second != first
    await images.pull(reference, second)
    assert {image.digest: image.references for image in await images.list()} == {first: (), second: (reference,)}


async def test_sweep_removes_only_old_unlocked_partial_pulls(make_service: MakeService) -> None:
    images = await make_service()
    old, young, busy = ("a" * 64, "b" * 64, "c" * 64)
    for name in (old, young, busy):
        stage = images.store.staging.try_open(f"sha256:{name}")
        assert stage is not None
        (stage.path / "disk.img").write_bytes(b"x")
        if name != busy:
            stage.close()
        if name != young:
            past_s = time.time() - 100 * 3600
            os.utime(stage.path, (past_s, past_s))
    (images.store.root / ".staging" / f"removed-{old}-1234").mkdir()
    assert images.store.staging.sweep() == 2
    assert staged(images) == [young, busy]


@contextlib.contextmanager
def small_file_system(folder: Path, mib: int) -> Iterator[Path]:
    image, mount = folder / "small.ext4", folder / "small"
    with image.open("wb") as file:
        file.truncate(mib * MIB)
    mount.mkdir()
    commands = (f"mkfs.ext4 -q -m 0 -O ^has_journal {image}", f"mount -o loop {image} {mount}")
    if os.geteuid() != 0 or any(os.system(command) for command in commands):
        pytest.skip("needs root and loop devices")
    try:
        yield mount
    finally:
        assert os.system(f"umount {mount}") == 0


def fill(path: Path, *, leave_kib: int = 0) -> None:
    """Write a file that takes all free space except `leave_kib`."""
    with path.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 10):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
        file.truncate(max(0, file.tell() - (leave_kib << 10)))


async def test_too_large_image_is_refused_before_the_download(
    faulty: FaultyRegistry, make_service: MakeService, tmp_path: Path
) -> None:
    with small_file_system(tmp_path, 4) as mount:
        images = await make_service(faulty.host, data_dir=mount / "data", reserve_mib=1)
        digest = await images.resolve(faulty.reference())
        with pytest.raises(DiskTooSmallError) as raised:
            await images.pull(faulty.reference(), digest)
        assert "needs 3 MiB" in raised.value.message
        assert "1 MiB are reserved" in raised.value.message
        assert not chunks_of(faulty, digest) & {seen.path.rpartition("/")[2] for seen in faulty.gets()}


async def test_full_disk_never_publishes_wrong_bytes(
    faulty: FaultyRegistry, make_service: MakeService, tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pull with more and more free space, so that each write fails once. A failed pull must leave nothing."""
    monkeypatch.setattr(SpaceManager, "ensure_space", lambda *_: None)  # it would refuse most of these pulls
    outcomes = set()
    with small_file_system(tmp_path, 8) as mount:
        images = await make_service(faulty.host, data_dir=mount / "data")
        digest = await images.resolve(faulty.reference())
        for free_kib in (0, 4, 8, 16, 32, 64, 256, 1000, 1900, 2000, 2040, 2080, 2120, 2200, 2400, 3000):
            fill(mount / "filler", leave_kib=free_kib)
            try:
                await images.pull(faulty.reference(), digest)
            except (DiskTooSmallError, StoreError):
                outcomes.add("refused")
            else:
                outcomes.add("pulled")
            for image in await images.list():  # the image may be complete, without a recorded reference
                assert sha256_of((await images.local(image.digest)).disk) == sha256_of(disk)
            fill(mount / "filler")
            await images.remove(digest)  # must work on a disk without a free byte
            assert await images.list() == ()
            assert staged(images) == []
            (mount / "filler").unlink()
        await images.close()
    assert outcomes == {"refused", "pulled"}


async def test_pull_frees_the_disk_that_it_filled(
    faulty: FaultyRegistry, make_service: MakeService, tmp_path: Path
) -> None:
    with small_file_system(tmp_path, 5) as mount:
        images = await make_service(faulty.host, data_dir=mount / "data")
        digest = await images.resolve(faulty.reference())

        def fill_it(name: str) -> bool:
            if name in chunks_of(faulty, digest):
                fill(mount / "filler")
            return False

        faulty.arm("500", only=fill_it)
        with pytest.raises(DiskTooSmallError, match="became full"):
            await images.pull(faulty.reference(), digest)
        assert staged(images) == []
        assert await images.list() == ()
        await images.close()
