"""Pulls of a new version: only changed blocks are fetched; the rest is cloned or copied from local images."""

from __future__ import annotations

import json
import os
import random
from typing import TYPE_CHECKING

import pytest

from agent.images.blockindex import INDEX_TYPE
from agent.images.manifest import digest_of, parse_manifest
from agent.images.vmconfig import Hardware
from tests.images.disks import MIB, push_layout, sha256_of, write_disk
from tests.images.faulty_registry import FaultyRegistry, run_faulty
from tests.support.volumes import xfs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from concurrent.futures import Executor
    from pathlib import Path

    from agent.images.service import ImageService
    from tests.images.conftest import MakeService
    from tests.support.registry import RegistryProcess

BLOCK = 64 << 10


def bumped(disk: Path, target: Path) -> Path:
    """Write the next version of a disk: with changed and zeroed blocks, one moved MiB, and appended data."""
    chance = random.Random(7)
    content = bytearray(disk.read_bytes())
    for at in (3 * MIB + BLOCK, 6 * MIB + 2 * BLOCK):
        content[at : at + 100] = chance.randbytes(100)
    content[BLOCK : 2 * BLOCK] = bytes(BLOCK)
    content[7 * MIB : 8 * MIB] = content[0:MIB]
    with target.open("wb") as file:
        file.truncate(len(content) + MIB)
        for at in range(0, len(content), BLOCK):
            if any(content[at : at + BLOCK]):
                file.seek(at)
                file.write(content[at : at + BLOCK])
    return target


@pytest.fixture
async def versions(tmp_path: Path, disk: Path, executor: Executor) -> AsyncIterator[tuple[FaultyRegistry, str, str]]:
    """A registry with two versions of an image, v1 and v2, and their block indexes by the referrers tag schema."""
    layout = tmp_path / "layout"
    registry = FaultyRegistry()
    first = await push_layout(disk, layout, executor, tag="v1", chunk_bytes=4 * MIB)
    second = await push_layout(bumped(disk, tmp_path / "v2.img"), layout, executor, tag="v2", chunk_bytes=4 * MIB)
    registry.load(layout)
    async with run_faulty(registry):
        yield registry, first, second


async def pull(images: ImageService, registry: FaultyRegistry, tag: str) -> Path:
    digest = await images.resolve(registry.reference(tag))
    await images.pull(registry.reference(tag), digest)
    return (await images.local(digest)).disk


async def test_update_fetches_only_changed_blocks(
    versions: tuple[FaultyRegistry, str, str], make_service: MakeService, tmp_path: Path
) -> None:
    registry, _, second = versions
    images = await make_service(registry.host)
    await pull(images, registry, "v1")
    registry.seen.clear()
    pulled = await pull(images, registry, "v2")
    assert sha256_of(pulled) == sha256_of(tmp_path / "v2.img")
    manifest = parse_manifest(registry.manifests[second])
    chunks = {chunk.blob.digest for chunk in manifest.chunks}
    ranges = [seen.range for seen in registry.gets() if seen.path.rpartition("/")[2] in chunks]
    assert len(ranges) == 2
    moved = [int(end) - int(start) + 1 for start, end in (text.removeprefix("bytes=").split("-") for text in ranges)]
    assert all(0 < size <= BLOCK + 100 for size in moved)


async def test_referrers_api_is_used_when_supported(
    versions: tuple[FaultyRegistry, str, str], make_service: MakeService, tmp_path: Path
) -> None:
    registry, first, second = versions
    tags = {digest: digest.replace(":", "-") for digest in (first, second)}
    registry.referrers = {digest: registry.manifests.pop(tag) for digest, tag in tags.items()}
    images = await make_service(registry.host)
    await pull(images, registry, "v1")
    registry.seen.clear()
    pulled = await pull(images, registry, "v2")
    assert sha256_of(pulled) == sha256_of(tmp_path / "v2.img")
    assert len([seen for seen in registry.gets() if seen.range]) == 2
    assert not [seen for seen in registry.seen if seen.path.endswith(tags[second])]


async def test_equal_chunks_are_reused_without_an_index(
    versions: tuple[FaultyRegistry, str, str], make_service: MakeService, tmp_path: Path
) -> None:
    registry, first, second = versions
    for name in [name for name in registry.manifests if name.startswith("sha256-")]:
        del registry.manifests[name]
    images = await make_service(registry.host)
    await pull(images, registry, "v1")
    registry.seen.clear()
    assert sha256_of(await pull(images, registry, "v2")) == sha256_of(tmp_path / "v2.img")
    old = {chunk.blob.digest for chunk in parse_manifest(registry.manifests[first]).chunks}
    new = {chunk.blob.digest for chunk in parse_manifest(registry.manifests[second]).chunks}
    assert not {seen.path.rpartition("/")[2] for seen in registry.gets()} & old & new


def _shuffled(index: bytes) -> bytes:
    """Return an index whose digests are shuffled between the blocks."""
    changed = bytearray(index)
    head = 12 + 64 * 4
    for at in range(head, head + 64 * 16 - 16, 32):
        changed[at : at + 16], changed[at + 16 : at + 32] = changed[at + 16 : at + 32], changed[at : at + 16]
    return bytes(changed)


@pytest.mark.parametrize(
    "lie",
    [
        lambda _: b"",
        lambda index: index[:-1],
        lambda index: b"\xff" * len(index),
        lambda index: index + b"x",
        _shuffled,
    ],
    ids=["empty", "short", "garbage", "long", "shuffled"],
)
async def test_wrong_index_does_not_change_the_image(
    lie: object, versions: tuple[FaultyRegistry, str, str], make_service: MakeService, tmp_path: Path
) -> None:
    registry, _, second = versions
    images = await make_service(registry.host)
    await pull(images, registry, "v1")
    _replace_index(registry, second, lie)
    assert sha256_of(await pull(images, registry, "v2")) == sha256_of(tmp_path / "v2.img")


def _replace_index(registry: FaultyRegistry, subject: str, lie: object) -> None:
    """Attach another block index to an image, which needs only push access to the registry."""
    assert callable(lie)
    tag = subject.replace(":", "-")
    listing = json.loads(registry.manifests[tag])
    artifact = json.loads(registry.blobs[listing["manifests"][0]["digest"]])
    content = lie(registry.blobs[artifact["layers"][0]["digest"]])
    artifact["layers"][0] |= {"digest": digest_of(content), "size": len(content)}
    raw = json.dumps(artifact).encode()
    listing["manifests"][0]["digest"] = digest_of(raw)
    registry.blobs[digest_of(content)] = content
    registry.manifests |= {digest_of(raw): raw, tag: json.dumps(listing).encode()}


async def test_chunk_is_fetched_when_the_base_is_damaged(
    versions: tuple[FaultyRegistry, str, str], make_service: MakeService, tmp_path: Path
) -> None:
    registry, _, _ = versions
    images = await make_service(registry.host)
    base = await pull(images, registry, "v1")
    with base.open("r+b") as file:
        for at in range(0, 8 * MIB, 2 * MIB):
            file.seek(at + 5 * BLOCK)
            file.write(b"rot")
    assert sha256_of(await pull(images, registry, "v2")) == sha256_of(tmp_path / "v2.img")


async def test_lost_chunk_index_is_rebuilt(
    versions: tuple[FaultyRegistry, str, str], make_service: MakeService, tmp_path: Path
) -> None:
    registry, _, second = versions
    images = await make_service(registry.host)
    await pull(images, registry, "v1")
    (images.store.root / ".index" / "chunks.sqlite").write_bytes(b"this is no database" * 1000)
    again = await make_service(registry.host)
    registry.seen.clear()
    assert sha256_of(await pull(again, registry, "v2")) == sha256_of(tmp_path / "v2.img")
    largest = max(parse_manifest(registry.manifests[second]).chunks, key=lambda chunk: chunk.blob.size)
    assert all(seen.range for seen in registry.gets(largest.blob.digest))


async def test_clone_shares_blocks_with_the_old_version(
    tmp_path: Path, executor: Executor, make_service: MakeService
) -> None:
    disk = write_disk(tmp_path / "v1.img", mib=48, every=1)
    layout = tmp_path / "layout"
    with xfs(tmp_path) as mount:
        images = await make_service(data_dir=mount / "data")
        for tag, content in (("v1", disk), ("v2", bumped(disk, tmp_path / "v2.img"))):
            digest = await push_layout(content, layout, executor, tag=tag, chunk_bytes=4 * MIB)
            before = os.statvfs(mount)
            await images.pull(f"oci-layout:{layout}:{tag}", digest)
            after = os.statvfs(mount)
        assert sha256_of((await images.local(digest)).disk) == sha256_of(tmp_path / "v2.img")
        taken = (before.f_bfree - after.f_bfree) * before.f_frsize
        assert taken < 4 * MIB  # the moved MiB and some blocks, of a disk with 24 MiB of data
        await images.close()


@pytest.mark.registry
async def test_real_registry_stores_the_index(
    registry: RegistryProcess, tmp_path: Path, disk: Path, make_service: MakeService
) -> None:
    images = await make_service(registry.host)
    disk = write_disk(tmp_path / "big.img", mib=20, every=1)
    fetched = []
    for tag, content in (("v1", disk), ("v2", bumped(disk, tmp_path / "v2.img"))):
        reference = f"{registry.host}/ci/debian:{tag}"
        digest = await images.push(content, reference, hardware=Hardware())
        await images.remove(digest)
        await images.pull(reference, digest)
        fetched.append(digest)
    index = images.store.root / ".index" / f"{fetched[1].removeprefix('sha256:')}.blocks"
    assert index.read_bytes()[:4] == b"HBI1"
    assert INDEX_TYPE.startswith("application/vnd.hearth.")
