"""Artifacts attached to an image, by the referrers API, or by the tag schema if a registry lacks that API.

(OCI distribution specification 1.1, "Listing Referrers" and "Referrers Tag Schema".)
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from agent.images.errors import BadImageError, ImageNotFoundError
from agent.images.manifest import INDEX_TYPE, MANIFEST_TYPE, Blob, descriptor, digest_of, parse_json
from agent.images.reference import is_digest

if TYPE_CHECKING:
    from agent.images.sources.contract import Repository

EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
EMPTY: Final = b"{}"
_MAX_BLOB_BYTES: Final = 1 << 40


async def find_attached(repository: Repository, subject: str, artifact_type: str) -> Blob | None:
    """Return the first layer of the newest artifact of this type attached to the manifest `subject`; None if none is.

    Raises the errors of `Source`, and `BadImageError` for invalid lists and artifacts.
    """
    entries = await _listed(repository, subject)
    if entries is None:
        try:
            entries = _entries(await repository.manifest(_tag(subject)))
        except ImageNotFoundError:
            return None
    for entry in reversed(entries):
        if entry.get("artifactType") == artifact_type and is_digest(str(entry.get("digest"))):
            return _first_layer(await repository.manifest(entry["digest"]), subject)
    return None


async def attach(repository: Repository, subject: Blob, artifact_type: str, content: bytes) -> None:
    """Attach `content` to the manifest that `subject` describes."""
    blob, empty = Blob(digest_of(content), len(content)), Blob(digest_of(EMPTY), len(EMPTY))
    for part, data in ((blob, content), (empty, EMPTY)):
        if not await repository.has(part):
            await repository.put(part, data)
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": artifact_type,
            "config": descriptor(EMPTY_TYPE, empty),
            "layers": [descriptor(artifact_type, blob)],
            "subject": descriptor(MANIFEST_TYPE, subject),
        },
        separators=(",", ":"),
    ).encode()
    if not await repository.put_manifest(manifest, media_type=MANIFEST_TYPE, tag=None):
        await _attach_by_tag(repository, subject.digest, artifact_type, manifest)


async def _listed(repository: Repository, subject: str) -> list[dict[str, Any]] | None:
    """Return the entries of the referrers API; None if the answer is not a list, such as the page of a login."""
    listing = await repository.referrers(subject)
    try:
        return None if listing is None else _entries(listing)
    except BadImageError:
        return None


async def _attach_by_tag(repository: Repository, subject: str, artifact_type: str, manifest: bytes) -> None:
    tag = _tag(subject)
    try:
        entries = _entries(await repository.manifest(tag))
    except (ImageNotFoundError, BadImageError):
        entries = []
    entry = descriptor(MANIFEST_TYPE, Blob(digest_of(manifest), len(manifest))) | {"artifactType": artifact_type}
    entries = [*(known for known in entries if known.get("digest") != entry["digest"]), entry]
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}
    await repository.put_manifest(json.dumps(index, separators=(",", ":")).encode(), media_type=INDEX_TYPE, tag=tag)


def _tag(subject: str) -> str:
    return subject.replace(":", "-")


def _entries(listing: bytes) -> list[dict[str, Any]]:
    entries = parse_json(listing, "the list of referrers").get("manifests")
    if not isinstance(entries, list):
        raise BadImageError("the list of referrers has no manifests")
    return [entry for entry in entries if isinstance(entry, dict)]


def _first_layer(raw: bytes, subject: str) -> Blob:
    document = parse_json(raw, "the artifact")
    found_subject, layers = document.get("subject"), document.get("layers")
    layer = layers[0] if isinstance(layers, list) and layers and isinstance(layers[0], dict) else {}
    size = layer.get("size")
    if (
        not isinstance(found_subject, dict)
        or found_subject.get("digest") != subject
        or not is_digest(str(layer.get("digest")))
    ):
        raise BadImageError("the artifact is attached to another image")
    if not isinstance(size, int) or not 0 < size < _MAX_BLOB_BYTES:
        raise BadImageError("the size of the artifact is invalid")
    return Blob(layer["digest"], size)
