"""Images in the form of stock Tart: large chunks whose LZ4 blocks refer back into earlier blocks."""

from __future__ import annotations

import hashlib
import json
import struct
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import lz4.block  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

BLOCK: Final = 64 << 10
TART_CHUNK: Final = 512 << 20

APPLE_NVRAM: Final = b"UEFI variables in Apple's own format"

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.cirruslabs.tart.config.v1"
DISK = "application/vnd.cirruslabs.tart.disk.v2"
NVRAM = "application/vnd.cirruslabs.tart.nvram.v1"
SIZE = "org.cirruslabs.tart.uncompressed-size"
DIGEST = "org.cirruslabs.tart.uncompressed-content-digest"


def back_referring_frame(raw: bytes) -> bytes:
    """Encode like Apple's encoder: every block except the first may refer to the 64 KiB before it."""
    out = bytearray()
    for at in range(0, len(raw), BLOCK):
        block = raw[at : at + BLOCK]
        encoded = lz4.block.compress(block, store_size=False, dict=raw[max(0, at - BLOCK) : at])
        if len(encoded) < len(block):
            out += struct.pack("<4sII", b"bv41", len(block), len(encoded)) + encoded
        else:
            out += struct.pack("<4sI", b"bv4-", len(block)) + block
    return bytes(out + b"bv4$")


def write_tart_layout(
    layout: Path,
    disk: Path,
    *,
    tag: str = "v1",
    chunk_bytes: int = TART_CHUNK,
    nvram: bytes = APPLE_NVRAM,
    vm_config: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """Write a disk to a new OCI layout, as an image in the form of stock Tart. Return its digest."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    about = {"version": 1, "os": "linux", "arch": "amd64", "cpuCount": 4, "cpuCountMin": 4, "memorySize": 2**32}
    about |= {"memorySizeMin": 2**32, "macAddress": "ea:00:00:00:00:01", "display": {"width": 1024, "height": 768}}
    layers = [_put(blobs, CONFIG, json.dumps(about | dict(vm_config)).replace("/", r"\/").encode())]
    for raw in _pieces(disk, chunk_bytes):
        layer = _put(blobs, DISK, back_referring_frame(raw))
        layers.append(layer | {"annotations": {SIZE: str(len(raw)), DIGEST: _digest(raw)}})
    layers.append(_put(blobs, NVRAM, nvram))
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _put(blobs, "application/vnd.oci.image.config.v1+json", b'{"architecture":"amd64","os":"linux"}'),
        "layers": layers,
        "annotations": {
            "org.cirruslabs.tart.uncompressed-disk-size": str(disk.stat().st_size),
            "org.cirruslabs.tart.upload-time": "2026-11-22T10:00:00Z",
        },
    }
    entry = _put(blobs, MANIFEST, json.dumps(document).replace("/", r"\/").encode())
    entry |= {"annotations": {"org.opencontainers.image.ref.name": tag}}
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return str(entry["digest"])


def _pieces(disk: Path, size: int) -> Iterator[bytes]:
    with disk.open("rb") as file:
        while raw := file.read(size):
            yield raw


def _put(blobs: Path, media_type: str, content: bytes) -> dict[str, Any]:
    digest = _digest(content)
    (blobs / digest.removeprefix("sha256:")).write_bytes(content)
    return {"mediaType": media_type, "digest": digest, "size": len(content)}


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
