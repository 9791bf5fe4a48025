from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.images.errors import BadImageError
from agent.images.manifest import MAX_MANIFEST_BYTES, parse_manifest, parse_vm_config

CONFIG = "application/vnd.cirruslabs.tart.config.v1"
DISK = "application/vnd.cirruslabs.tart.disk.v2"
NVRAM = "application/vnd.cirruslabs.tart.nvram.v1"
SIZE = "org.cirruslabs.tart.uncompressed-size"
DIGEST = "org.cirruslabs.tart.uncompressed-content-digest"
SOME = "sha256:" + "ab" * 32


def blob(media_type: str, size: int = 10, annotations: dict[str, str] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"mediaType": media_type, "digest": SOME, "size": size}
    return found | {"annotations": annotations} if annotations else found


def document() -> dict[str, Any]:
    chunk = {SIZE: "1048576", DIGEST: SOME}
    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("application/vnd.oci.image.config.v1+json"),
        "layers": [blob(CONFIG), blob(DISK, 10, chunk), blob(DISK, 10, chunk), blob(NVRAM, 0)],
        "annotations": {"org.cirruslabs.tart.uncompressed-disk-size": "2097152"},
    }


def test_chunk_offsets_are_contiguous() -> None:
    raw = json.dumps(document()).encode()
    manifest = parse_manifest(raw)
    assert [chunk.offset for chunk in manifest.chunks] == [0, 1 << 20]
    assert manifest.disk_bytes == 2 << 20
    assert manifest.total_bytes == 30


def test_identity_is_the_digest_of_the_bytes() -> None:
    plain = json.dumps(document()).encode()
    escaped = plain.replace(b"/", rb"\/")
    assert parse_manifest(plain).chunks == parse_manifest(escaped).chunks
    assert parse_manifest(escaped).digest == f"sha256:{hashlib.sha256(escaped).hexdigest()}"


def test_manifest_without_disk_size_is_accepted() -> None:
    changed = document()
    del changed["annotations"]
    assert parse_manifest(json.dumps(changed).encode()).disk_bytes == 2 << 20


def test_manifest_without_media_type_is_accepted() -> None:
    changed = document()
    del changed["mediaType"]
    assert parse_manifest(json.dumps(changed).encode()).disk_bytes == 2 << 20


def edited(*path: str | int, value: object) -> bytes:
    changed = document()
    at: Any = changed
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return json.dumps(changed).encode()


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "media type"),
        (b'{"schemaVersion":2,"manifests":[]}', "layers"),
        (b'{"schemaVersion":2,"mediaType":' + b"[" * 900 + b"]" * 900 + b"}", "media type"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "larger"),
        (edited("mediaType", value="application/vnd.oci.image.index.v1+json"), "media type"),
        (edited("schemaVersion", value=1), "media type"),
        (edited("layers", value=None), "layers"),
        (edited("layers", value=[]), "layers"),
        (edited("layers", value=[1, 2, 3]), "layer 0"),
        (edited("layers", 0, "mediaType", value="application/vnd.oci.image.layer.v1.tar+gzip"), "layer 0"),
        (edited("layers", 1, "mediaType", value=NVRAM), "layer 1"),
        (edited("layers", 1, "mediaType", value="application/vnd.cirruslabs.tart.disk.v1"), "first format"),
        (edited("layers", 1, "mediaType", value="application/vnd.cirruslabs.tart.disk.asif.overlay.v1"), "macOS 27"),
        (edited("layers", 3, "mediaType", value=["x"]), "layer 3"),
        (edited("layers", 1, "digest", value="sha256:../../../etc/passwd"), "digest"),
        (edited("layers", 1, "digest", value=None), "digest"),
        (edited("layers", 1, "size", value=-1), "size"),
        (edited("layers", 1, "size", value=True), "size"),
        (edited("layers", 1, "size", value="10"), "size"),
        (edited("layers", 1, "size", value=10**30), "size"),
        (edited("layers", 1, "annotations", value=None), "annotations"),
        (edited("layers", 1, "annotations", SIZE, value="100000000000"), "outside"),
        (edited("layers", 1, "annotations", SIZE, value="-5"), "not a number"),
        (edited("layers", 1, "annotations", SIZE, value="٣"), "not a number"),
        (edited("layers", 1, "annotations", SIZE, value="9" * 5000), "not a number"),
        (edited("layers", 1, "annotations", SIZE, value="0"), "outside"),
        (edited("layers", 1, "annotations", SIZE, value="1048575"), "whole sectors"),
        (edited("layers", 1, "annotations", DIGEST, value="md5:abc"), "raw digest"),
        (edited("layers", 3, "size", value=1 << 40), "NVRAM"),
        (edited("config", value=None), "missing"),
        (edited("annotations", "org.cirruslabs.tart.uncompressed-disk-size", value="1024"), "claims"),
    ],
)
def test_invalid_manifest_is_rejected_with_the_reason(raw: bytes, says: str) -> None:
    with pytest.raises(BadImageError) as raised:
        parse_manifest(raw)
    assert says in str(raised.value)
    assert len(str(raised.value)) < 500


def test_too_large_manifest_is_rejected_before_parsing() -> None:
    layer = b'{"mediaType":"application/vnd.cirruslabs.tart.disk.v2","digest":"%s","size":1}' % SOME.encode()
    raw = b'{"schemaVersion":2,"layers":[' + b",".join([layer] * 1_000_000) + b"]}"
    with pytest.raises(BadImageError, match="larger"):
        parse_manifest(raw)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(value=json_values, where=st.integers(0, 200))
def test_any_value_is_parsed_or_rejected(value: object, where: int) -> None:
    places = list(_places(document()))
    path = places[where % len(places)]
    raw = edited(*path, value=value)
    try:
        manifest = parse_manifest(raw)
    except BadImageError:
        return
    assert manifest.disk_bytes == sum(chunk.raw_size for chunk in manifest.chunks)


@given(st.binary(max_size=300))
def test_random_bytes_are_rejected(raw: bytes) -> None:
    with pytest.raises(BadImageError):
        parse_manifest(raw)


def _places(value: Any, path: tuple[str | int, ...] = ()) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield (*path, key)
        yield from _places(inner, (*path, key))


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"{", "not valid JSON"),
        (b'{"os":"windows"}', "unsupported system"),
        (b'{"os":"linux","arch":"mips"}', "unsupported system"),
        (b'{"os":["linux"],"arch":"amd64"}', "unsupported system"),
        (b'{"os":"darwin","diskFormat":"asif"}', "ASIF"),
    ],
)
def test_invalid_vm_configuration_is_rejected(raw: bytes, says: str) -> None:
    with pytest.raises(BadImageError, match=says):
        parse_vm_config(raw)


def test_vm_configuration_has_the_defaults_of_tart() -> None:
    config = parse_vm_config(b'{"version":1}')
    assert (config.os, config.arch) == ("darwin", "arm64")
