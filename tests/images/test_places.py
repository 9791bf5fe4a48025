"""The conformance suite of places: whatever holds images must do all of this, and fail in these ways."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Protocol

import pytest

from agent.config import RegistryConfig
from agent.images.errors import ImageNotFoundError, TransferError
from agent.images.manifest import MANIFEST_TYPE, Blob, digest_of
from agent.images.places import Places
from agent.images.reference import parse_reference
from agent.images.referrers import attach, find_attached
from agent.images.sources.mirrored import MirroredPlace
from tests.support.registry import run_registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agent.images.sources.contract import Place

CONTENT = bytes(range(256)) * 5000
BLOB = Blob(digest_of(CONTENT), len(CONTENT))
ARTIFACT = "application/vnd.tests.artifact.v1"


class Open(Protocol):
    """Opens a repository of the place under test; every call for the same name, the same one."""

    def __call__(self, name: str = "one") -> Place: ...


@pytest.fixture(params=["layout", "registry", "mirrored"])
async def open_place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    if request.param == "layout":
        places = Places({})
        yield lambda name="one": places.open(parse_reference(f"oci-layout:{tmp_path}/{name}"))
        await places.close()
        return
    async with run_registry(tmp_path / "registry") as running:
        places = Places({running.host: RegistryConfig(insecure=True)})

        def opened(name: str = "one") -> Place:
            place = places.open(parse_reference(f"{running.host}/tests/{name}"))
            mirrors = [places.open(parse_reference(f"{running.host}/tests/mirror"))]
            return MirroredPlace(place, mirrors) if request.param == "mirrored" else place

        yield opened
        await places.close()


def manifest_of(text: str) -> bytes:
    config = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": BLOB.digest, "size": BLOB.size}
    return json.dumps(
        {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": [], "annotations": {"text": text}}
    ).encode()


async def read(place: Place, blob: Blob, start: int, size: int) -> bytes:
    found = bytearray()

    async def write(piece: memoryview) -> None:
        found.extend(piece)

    await place.read(blob, start, size, write)
    return bytes(found)


async def test_a_blob_comes_back_whole_and_in_parts(open_place: Open) -> None:
    place = open_place()
    assert not await place.has(BLOB)
    await place.put(BLOB, CONTENT)
    await place.put(BLOB, CONTENT)
    assert await place.has(BLOB)
    assert await read(place, BLOB, 0, BLOB.size) == CONTENT
    assert await read(place, BLOB, 1000, 5000) == CONTENT[1000:6000]
    assert await read(place, BLOB, BLOB.size - 1, 1) == CONTENT[-1:]
    assert place.ranged


async def test_an_empty_blob_is_a_blob(open_place: Open) -> None:
    place, empty = open_place(), Blob(digest_of(b""), 0)
    await place.put(empty, b"")
    assert await place.has(empty)


async def test_a_blob_of_another_size_than_promised_is_an_error(open_place: Open) -> None:
    place = open_place()
    await place.put(BLOB, CONTENT)
    with pytest.raises(TransferError):
        await read(place, Blob(BLOB.digest, BLOB.size + 10), 0, BLOB.size + 10)


async def test_what_is_not_there_is_said_to_be_missing(open_place: Open) -> None:
    place = open_place()
    await place.put(BLOB, CONTENT)
    await place.put_manifest(manifest_of("a"), media_type=MANIFEST_TYPE, tag="v1")
    missing = Blob(f"sha256:{'0' * 64}", 5)
    for question in (
        place.manifest("v2"),
        place.manifest(missing.digest),
        place.digest("v2"),
        read(place, missing, 0, 5),
    ):
        with pytest.raises(ImageNotFoundError):
            await question


async def test_a_tag_names_a_manifest_byte_for_byte_and_moves(open_place: Open) -> None:
    place = open_place()
    await place.put(BLOB, CONTENT)
    for text in ("a", "b"):
        content = manifest_of(text)
        await place.put_manifest(content, media_type=MANIFEST_TYPE, tag="v1")
        assert await place.manifest("v1") == content
        assert await place.manifest(digest_of(content)) == content
        assert await place.digest("v1") in (None, digest_of(content))
    assert await place.manifest(digest_of(manifest_of("a"))) == manifest_of("a")


async def test_an_artifact_is_found_by_what_it_is_attached_to(open_place: Open) -> None:
    place = open_place()
    await place.put(BLOB, CONTENT)
    one, two = manifest_of("one"), manifest_of("two")
    for content in (one, two):
        await place.put_manifest(content, media_type=MANIFEST_TYPE, tag="v1")
    assert await find_attached(place, digest_of(one), ARTIFACT) is None
    for artifact in (b"first", b"second"):
        await attach(place, Blob(digest_of(one), len(one)), ARTIFACT, artifact)
    found = await find_attached(place, digest_of(one), ARTIFACT)
    assert found == Blob(digest_of(b"second"), 6)
    assert await read(place, found, 0, 6) == b"second"
    assert await find_attached(place, digest_of(one), "application/other") is None
    assert await find_attached(place, digest_of(two), ARTIFACT) is None


async def test_a_blob_can_be_asked_for_from_elsewhere(open_place: Open) -> None:
    one, two = open_place("one"), open_place("two")
    await one.put(BLOB, CONTENT)
    mounted = await two.mount(BLOB, "tests/one")
    assert await two.has(BLOB) == mounted
    assert not await two.mount(Blob(f"sha256:{'0' * 64}", 5), "tests/one")


async def test_many_writers_at_once_lose_nothing(open_place: Open) -> None:
    place = open_place()
    await place.put(BLOB, CONTENT)

    async def push(number: int) -> None:
        await place.put_manifest(manifest_of(str(number)), media_type=MANIFEST_TYPE, tag=f"v{number}")

    await asyncio.gather(*(push(number) for number in range(10)))
    for number in range(10):
        assert await place.manifest(f"v{number}") == manifest_of(str(number))
