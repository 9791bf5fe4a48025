"""The conformance suite of repositories: required behaviour and errors of every implementation."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import pytest

from agent.config import RegistryConfig
from agent.images.errors import ImageNotFoundError, TransferError
from agent.images.manifest import MANIFEST_TYPE, Blob, digest_of
from agent.images.reference import parse_reference
from agent.images.referrers import attach, find_attached
from agent.images.repositories import Repositories
from agent.images.sources.mirrored import MirroredRepository
from tests.support.registry import run_registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agent.images.sources.contract import Repository

CONTENT = bytes(range(256)) * 5000
BLOB = Blob(digest_of(CONTENT), len(CONTENT))
ARTIFACT = "application/vnd.tests.artifact.v1"


class OpenRepository(Protocol):
    """Opens a repository of the implementation under test. The same name always gives the same repository."""

    def __call__(self, name: str = "one") -> Repository: ...


@pytest.fixture(params=["layout", "registry", "mirrored"])
async def open_repository(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenRepository]:
    if request.param == "layout":
        repositories = Repositories({})
        yield lambda name="one": repositories.open(parse_reference(f"oci-layout:{tmp_path}/{name}"))
        await repositories.close()
        return
    async with run_registry(tmp_path / "registry") as running:
        repositories = Repositories({running.host: RegistryConfig(insecure=True)})

        def opened(name: str = "one") -> Repository:
            repository = repositories.open(parse_reference(f"{running.host}/tests/{name}"))
            mirrors = [repositories.open(parse_reference(f"{running.host}/tests/mirror"))]
            return MirroredRepository(repository, mirrors) if request.param == "mirrored" else repository

        yield opened
        await repositories.close()


def manifest_of(text: str) -> bytes:
    config = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": BLOB.digest, "size": BLOB.size}
    return json.dumps(
        {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": [], "annotations": {"text": text}}
    ).encode()


async def read(repository: Repository, blob: Blob, start: int, size: int) -> bytes:
    found = bytearray()

    async def write(piece: memoryview) -> None:
        found.extend(piece)

    await repository.read(blob, start, size, write)
    return bytes(found)


async def test_blob_is_read_whole_and_in_ranges(open_repository: OpenRepository) -> None:
    repository = open_repository()
    assert not await repository.has(BLOB)
    await repository.put(BLOB, CONTENT)
    await repository.put(BLOB, CONTENT)
    assert await repository.has(BLOB)
    assert await read(repository, BLOB, 0, BLOB.size) == CONTENT
    assert await read(repository, BLOB, 1000, 5000) == CONTENT[1000:6000]
    assert await read(repository, BLOB, BLOB.size - 1, 1) == CONTENT[-1:]
    assert repository.ranged


async def test_empty_blob_is_stored(open_repository: OpenRepository) -> None:
    repository, empty = open_repository(), Blob(digest_of(b""), 0)
    await repository.put(empty, b"")
    assert await repository.has(empty)


async def test_blob_of_another_size_is_an_error(open_repository: OpenRepository) -> None:
    repository = open_repository()
    await repository.put(BLOB, CONTENT)
    with pytest.raises(TransferError):
        await read(repository, Blob(BLOB.digest, BLOB.size + 10), 0, BLOB.size + 10)


async def test_missing_objects_are_reported(open_repository: OpenRepository) -> None:
    repository = open_repository()
    await repository.put(BLOB, CONTENT)
    await repository.put_manifest(manifest_of("a"), media_type=MANIFEST_TYPE, tag="v1")
    missing = Blob(f"sha256:{'0' * 64}", 5)
    for question in (
        repository.manifest("v2"),
        repository.manifest(missing.digest),
        read(repository, missing, 0, 5),
    ):
        with pytest.raises(ImageNotFoundError):
            await question


async def test_digest_of_a_missing_tag_is_missing_or_unknown(open_repository: OpenRepository) -> None:
    """A HEAD that fails does not decide: the caller then requests the manifest."""
    with suppress(ImageNotFoundError):
        assert await open_repository().digest("v2") is None


async def test_tag_names_an_exact_manifest_and_can_move(open_repository: OpenRepository) -> None:
    repository = open_repository()
    await repository.put(BLOB, CONTENT)
    for text in ("a", "b"):
        content = manifest_of(text)
        await repository.put_manifest(content, media_type=MANIFEST_TYPE, tag="v1")
        assert await repository.manifest("v1") == content
        assert await repository.manifest(digest_of(content)) == content
        assert await repository.digest("v1") in (None, digest_of(content))
    assert await repository.manifest(digest_of(manifest_of("a"))) == manifest_of("a")


async def test_artifact_is_found_by_its_subject(open_repository: OpenRepository) -> None:
    repository = open_repository()
    await repository.put(BLOB, CONTENT)
    one, two = manifest_of("one"), manifest_of("two")
    for content in (one, two):
        await repository.put_manifest(content, media_type=MANIFEST_TYPE, tag="v1")
    assert await find_attached(repository, digest_of(one), ARTIFACT) is None
    for artifact in (b"first", b"second"):
        await attach(repository, Blob(digest_of(one), len(one)), ARTIFACT, artifact)
    found = await find_attached(repository, digest_of(one), ARTIFACT)
    assert found == Blob(digest_of(b"second"), 6)
    assert await read(repository, found, 0, 6) == b"second"
    assert await find_attached(repository, digest_of(one), "application/other") is None
    assert await find_attached(repository, digest_of(two), ARTIFACT) is None


async def test_blob_can_be_mounted_from_another_repository(open_repository: OpenRepository) -> None:
    one, two = open_repository("one"), open_repository("two")
    await one.put(BLOB, CONTENT)
    mounted = await two.mount(BLOB, "tests/one")
    assert await two.has(BLOB) == mounted
    assert not await two.mount(Blob(f"sha256:{'0' * 64}", 5), "tests/one")


async def test_parallel_writers_lose_no_tag(open_repository: OpenRepository) -> None:
    repository = open_repository()
    await repository.put(BLOB, CONTENT)

    async def push(number: int) -> None:
        await repository.put_manifest(manifest_of(str(number)), media_type=MANIFEST_TYPE, tag=f"v{number}")

    await asyncio.gather(*(push(number) for number in range(10)))
    for number in range(10):
        assert await repository.manifest(f"v{number}") == manifest_of(str(number))
