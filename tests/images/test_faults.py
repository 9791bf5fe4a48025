"""Failures of a registry: each ends with the right bytes or a clear error, never with a wrong image or a hang."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from agent.images.errors import (
    BadImageError,
    CorruptImageError,
    ImageError,
    ImageNotFoundError,
    RegistryError,
)
from tests.images.conftest import IMPATIENT
from tests.images.disks import sha256_of, write_disk
from tests.images.faulty_registry import FAULTS, Armed, FaultyRegistry, run_faulty
from tests.images.tartlike import write_tart_layout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable
    from pathlib import Path

    from aiohttp import web

    from agent.images.sources.registry_http import RegistryTimeouts
    from tests.images.conftest import MakeService

pytestmark = pytest.mark.timeout(30)

SLOW = [pytest.param("stall", marks=pytest.mark.slow), pytest.param("drip", marks=pytest.mark.slow)]
TEMPORARY = ["too short", "too long", "reset", "cut at 40 %", *SLOW, "429", "500", "another range"]


@pytest.fixture
def timeouts() -> RegistryTimeouts:
    return IMPATIENT


@pytest.mark.parametrize("fault", [*TEMPORARY, "wrong bytes", "429 with Retry-After"])
async def test_temporary_failure_is_retried(
    fault: str, faulty: FaultyRegistry, make_service: MakeService, disk: Path
) -> None:
    images = await make_service(faulty.host)
    digest = await images.resolve(faulty.reference())
    faulty.arm(fault, times=3)
    await images.pull(faulty.reference(), digest)
    assert faulty.armed is not None
    assert faulty.armed.times == 0
    local = await images.local(digest)
    assert sha256_of(local.disk) == sha256_of(disk)


@pytest.mark.parametrize("fault", TEMPORARY)
async def test_permanent_failure_is_an_error_and_publishes_nothing(
    fault: str, faulty: FaultyRegistry, make_service: MakeService
) -> None:
    images = await make_service(faulty.host)
    digest = await images.resolve(faulty.reference())
    faulty.arm(fault, times=float("inf"))
    with pytest.raises(RegistryError) as raised:
        await images.pull(faulty.reference(), digest)
    assert "127.0.0.1" in str(raised.value)
    assert await images.list() == ()
    assert len(faulty.gets()) < 200


async def test_corrupt_chunk_is_retried_then_rejected(faulty: FaultyRegistry, make_service: MakeService) -> None:
    images = await make_service(faulty.host)
    digest = await images.resolve(faulty.reference())
    largest = max(faulty.blobs, key=lambda name: len(faulty.blobs[name]))
    faulty.arm("wrong bytes", times=float("inf"), only=lambda name: name == largest)
    with pytest.raises(CorruptImageError) as raised:
        await images.pull(faulty.reference(), digest)
    assert largest in str(raised.value)
    assert len(faulty.gets(largest)) == 3
    assert await images.list() == ()


async def test_corrupt_attempt_leaves_no_data_in_holes(
    faulty: FaultyRegistry, make_service: MakeService, disk: Path
) -> None:
    images = await make_service(faulty.host)
    digest = await images.resolve(faulty.reference())
    hits: Counter[str] = Counter()

    def twice_at_most(blob: str) -> bool:  # a third wrong response to a blob would fail the pull
        hits[blob] += 1
        return hits[blob] <= 2

    faulty.arm("wrong bytes", times=8, only=twice_at_most)
    await images.pull(faulty.reference(), digest)
    local = await images.local(digest)
    assert sha256_of(local.disk) == sha256_of(disk)
    assert local.disk.stat().st_blocks <= disk.stat().st_blocks + 8 * 128  # one 64 KiB block per piece of data


async def test_retry_after_is_obeyed(faulty: FaultyRegistry, make_service: MakeService) -> None:
    images = await make_service(faulty.host)
    digest = await images.resolve(faulty.reference())
    faulty.arm("429 with Retry-After", times=1)
    started_s = asyncio.get_running_loop().time()
    await images.pull(faulty.reference(), digest)
    assert (
        asyncio.get_running_loop().time() - started_s >= 0.5
    )  # the registry requests 1 s; these tests cap it at 0.5 s


async def test_retry_after_a_cut_requests_only_the_rest(faulty: FaultyRegistry, make_service: MakeService) -> None:
    images = await make_service(faulty.host)
    digest = await images.resolve(faulty.reference())
    largest = max(faulty.blobs, key=lambda name: len(faulty.blobs[name]))
    faulty.arm("cut at 40 %", times=1, only=lambda name: name == largest)
    await images.pull(faulty.reference(), digest)
    first, second = faulty.gets(largest)
    assert first.range == ""
    assert int(second.range.removeprefix("bytes=").split("-")[0]) > len(faulty.blobs[largest]) * 0.3


async def test_full_response_to_a_range_does_not_shift_bytes(
    faulty: FaultyRegistry, make_service: MakeService, disk: Path
) -> None:
    images = await make_service(faulty.host)
    digest = await images.resolve(faulty.reference())
    cut, whole = FAULTS["cut at 40 %"], FAULTS["200 for Range"]
    answers = iter([cut, whole] * 20)

    def in_turn(registry: FaultyRegistry, request: web.Request, content: bytes) -> Awaitable[web.StreamResponse]:
        return next(answers)(registry, request, content)

    faulty.armed = Armed(in_turn, times=40)
    await images.pull(faulty.reference(), digest)
    assert sha256_of((await images.local(digest)).disk) == sha256_of(disk)


@pytest.fixture
async def large(tmp_path: Path) -> AsyncIterator[FaultyRegistry]:
    """An image with one chunk of about 12 MiB compressed, which needs three buffers."""
    write_tart_layout(tmp_path / "large", write_disk(tmp_path / "large.img", mib=40, every=1))
    registry = FaultyRegistry()
    registry.load(tmp_path / "large")
    async with run_faulty(registry):
        yield registry


async def test_chunk_is_fetched_with_one_cacheable_request(
    large: FaultyRegistry, make_service: MakeService, tmp_path: Path
) -> None:
    images = await make_service(large.host)
    digest = await images.resolve(large.reference())
    await images.pull(large.reference(), digest)
    assert sha256_of((await images.local(digest)).disk) == sha256_of(tmp_path / "large.img")
    assert [seen.range for seen in large.gets()] == [""] * len({seen.path for seen in large.gets()})


async def test_very_large_chunk_is_read_in_ranges(
    large: FaultyRegistry, make_service: MakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.images.download.WHOLE_BYTES", 1 << 20)
    images = await make_service(large.host)
    digest = await images.resolve(large.reference())
    large.arm("cut at 40 %", times=2, only=lambda name: len(large.blobs[name]) > 1 << 20)
    await images.pull(large.reference(), digest)
    assert sha256_of((await images.local(digest)).disk) == sha256_of(tmp_path / "large.img")
    largest = max(large.blobs, key=lambda name: len(large.blobs[name]))
    assert len([seen for seen in large.gets(largest) if seen.range]) == 3 + 2


async def test_whole_blobs_are_requested_when_ranges_are_ignored(
    large: FaultyRegistry, make_service: MakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.images.download.WHOLE_BYTES", 1 << 20)
    large.arm("200 for Range", times=float("inf"))
    images = await make_service(large.host)
    for tag in ("v1", "again"):
        large.manifests[tag] = large.manifests["v1"]
        digest = await images.resolve(large.reference(tag))
        await images.pull(large.reference(tag), digest)
        assert sha256_of((await images.local(digest)).disk) == sha256_of(tmp_path / "large.img")
        ranges = [seen.range for seen in large.gets() if seen.range]
        await images.remove(digest)
        large.seen.clear()
    assert ranges == []


async def test_redirect_is_followed_without_the_password(
    faulty: FaultyRegistry, make_service: MakeService, disk: Path
) -> None:
    storage = FaultyRegistry(blobs=faulty.blobs)
    async with run_faulty(storage):
        faulty.redirect_to = f"http://{storage.host}"
        faulty.arm("redirect", times=float("inf"))
        images = await make_service(faulty.host)
        digest = await images.resolve(faulty.reference())
        await images.pull(faulty.reference(), digest)
        assert sha256_of((await images.local(digest)).disk) == sha256_of(disk)
        assert {seen.authorization for seen in storage.seen} == {""}


async def test_expired_signed_url_is_requested_again(
    faulty: FaultyRegistry, make_service: MakeService, disk: Path
) -> None:
    storage = FaultyRegistry(blobs=faulty.blobs)
    async with run_faulty(storage):
        storage.arm("expired", times=3)
        faulty.redirect_to = f"http://{storage.host}"
        faulty.arm("redirect", times=float("inf"))
        images = await make_service(faulty.host)
        digest = await images.resolve(faulty.reference())
        await images.pull(faulty.reference(), digest)
        assert sha256_of((await images.local(digest)).disk) == sha256_of(disk)
        assert len(faulty.gets()) == len(storage.gets()) == len({seen.path for seen in storage.gets()}) + 3


@pytest.mark.parametrize("target", ["http://127.0.0.1:9", "file:///etc", ""])
async def test_invalid_redirect_is_an_error(target: str, faulty: FaultyRegistry, make_service: MakeService) -> None:
    images = await make_service(faulty.host)
    digest = await images.resolve(faulty.reference())
    faulty.redirect_to = target
    faulty.arm("redirect", times=float("inf"))
    with pytest.raises(RegistryError):
        await images.pull(faulty.reference(), digest)
    assert await images.list() == ()


async def test_manifest_with_another_digest_is_rejected(faulty: FaultyRegistry, make_service: MakeService) -> None:
    images = await make_service(faulty.host)
    digest = await images.resolve(faulty.reference())
    faulty.manifests[digest] += b" "
    with pytest.raises(CorruptImageError, match="whose digest is not"):
        await images.pull(faulty.reference(), digest)


@pytest.mark.parametrize(
    ("manifest", "error"),
    [
        (b"\xff\xfe", BadImageError),
        (b"{}", BadImageError),
        (
            json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json"}).encode(),
            BadImageError,
        ),
        (b"x" * (9 << 20), BadImageError),
    ],
    ids=["not UTF-8", "empty", "an index", "too large"],
)
async def test_invalid_manifest_is_rejected(
    manifest: bytes, error: type[ImageError], faulty: FaultyRegistry, make_service: MakeService
) -> None:
    images = await make_service(faulty.host)
    faulty.manifests["other"] = manifest
    reference = faulty.reference("other")
    with pytest.raises(error):
        faulty.manifests[digest := await images.resolve(reference)] = manifest
        await images.pull(reference, digest)
    assert await images.list() == ()


async def test_error_names_the_unknown_tag_image_or_registry(faulty: FaultyRegistry, make_service: MakeService) -> None:
    images = await make_service(faulty.host, "127.0.0.1:9")
    with pytest.raises(ImageNotFoundError, match="no tag 'v9'"):
        await images.resolve(faulty.reference("v9"))
    with pytest.raises(ImageNotFoundError, match="tests/other"):
        await images.resolve(f"{faulty.host}/tests/other:v1")
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:9"):
        await images.resolve("127.0.0.1:9/tests/image:v1")


async def test_https_is_used_unless_configured_insecure(faulty: FaultyRegistry, make_service: MakeService) -> None:
    images = await make_service()
    with pytest.raises(RegistryError) as raised:
        await images.resolve(faulty.reference())
    assert "insecure = true" in raised.value.remedy
    assert faulty.seen == []
