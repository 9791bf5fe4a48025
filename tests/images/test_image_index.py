"""Image indexes between a tag and its image."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from agent.images.errors import BadImageError
from agent.images.image_index import select_entry
from agent.images.inspect import describe
from agent.images.manifest import INDEX_TYPE, MANIFEST_TYPE, digest_of
from tests.images.disks import sha256_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.images.conftest import MakeService
    from tests.images.faulty_registry import FaultyRegistry

ONE, TWO = (f"sha256:{letter * 64}" for letter in "ab")
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"


def entry(digest: str, arch: str | None = None, **more: Any) -> dict[str, Any]:
    found = {"mediaType": MANIFEST_TYPE, "digest": digest, "size": 1, **more}
    return found | ({"platform": {"os": "linux", "architecture": arch}} if arch else {})


ATTESTATION = entry(TWO, "unknown", annotations={"vnd.docker.reference.type": "attestation-manifest"})


def index(*entries: object, media_type: str | None = INDEX_TYPE) -> bytes:
    document: dict[str, Any] = {"schemaVersion": 2, "manifests": list(entries)}
    return json.dumps(document | ({"mediaType": media_type} if media_type else {})).encode()


@pytest.mark.parametrize(
    "raw",
    [
        index(entry(ONE)),
        index(entry(ONE), media_type=None),
        index(entry(ONE), media_type=DOCKER_LIST),
        index(entry(ONE, "mips")),
        index(entry(ONE), ATTESTATION),
        index(entry(TWO, "arm64"), entry(ONE, "amd64")),
        index(entry(ONE, "amd64"), entry(TWO)),
        index(entry(ONE), entry(TWO, mediaType="application/vnd.docker.distribution.manifest.v2+json")),
        index(entry(ONE), 3, {"digest": "sha256:x"}, None),
        index({"digest": ONE}),
    ],
)
def test_one_fitting_entry_is_selected(raw: bytes) -> None:
    assert select_entry(raw, "r.example/a:v1", machine="x86_64") == ONE


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (index(), "0 images fit"),
        (index(ATTESTATION), "its images are: none"),
        (
            index(entry(ONE, "amd64"), entry(TWO, "amd64")),
            "2 images fit this host, not one; its images are: linux/amd64",
        ),
        (index(entry(ONE, "arm64"), entry(TWO, "mips")), "0 images fit"),
        (index(entry(ONE), entry(TWO)), "0 images fit"),
        (json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE}).encode(), "0 images fit"),
        (json.dumps({"mediaType": INDEX_TYPE, "manifests": {"a": 1}}).encode(), "0 images fit"),
    ],
)
def test_index_without_one_fitting_entry_is_refused(raw: bytes, says: str) -> None:
    with pytest.raises(BadImageError, match="r.example/a:v1") as raised:
        select_entry(raw, "r.example/a:v1", machine="x86_64")
    assert says in raised.value.message
    assert "digest" in raised.value.remedy


@pytest.mark.parametrize("document", [{}, {"mediaType": MANIFEST_TYPE, "layers": []}, {"manifests": [], "layers": []}])
def test_manifest_is_not_an_index(document: dict[str, Any]) -> None:
    assert select_entry(json.dumps(document).encode(), "r.example/a:v1") is None


async def test_tag_and_digest_of_an_index_lead_to_its_image(
    faulty: FaultyRegistry, make_service: MakeService, disk: Path
) -> None:
    digest = digest_of(faulty.manifests["v1"])
    raw = index(entry(digest), ATTESTATION)
    faulty.manifests["multi"] = faulty.manifests[digest_of(raw)] = raw
    images = await make_service(faulty.host)
    assert (await describe(images, faulty.reference("multi"))).digest == digest
    for reference in (faulty.reference("multi"), f"{faulty.reference('multi')}@{digest_of(raw)}"):
        assert await images.resolve(reference) == digest
        await images.pull(reference, digest)
    assert sha256_of((await images.local(digest)).disk) == sha256_of(disk)
    faulty.seen.clear()
    faulty.manifests.clear()
    assert await images.resolve(f"{faulty.reference('multi')}@{digest_of(raw)}") == digest
    assert faulty.seen == [], "an index named by digest always leads to the same image"


async def test_digest_decides_where_the_tag_moved(
    faulty: FaultyRegistry, make_service: MakeService, disk: Path
) -> None:
    digest = digest_of(faulty.manifests["v1"])
    faulty.manifests["v1"] = b'{"schemaVersion": 2}'
    images = await make_service(faulty.host)
    reference = f"{faulty.reference()}@{digest}"
    assert await images.resolve(reference) == digest
    await images.pull(reference, digest)
    (image,) = await images.list()
    assert image.references == (reference,)
    assert sha256_of((await images.local(digest)).disk) == sha256_of(disk)
    faulty.seen.clear()
    assert await images.resolve(reference) == digest
    assert faulty.seen == []
