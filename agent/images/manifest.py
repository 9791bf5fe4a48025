"""Tart's OCI image format: the manifest, parsed strictly because its bytes may be hostile.

A VM image is one OCI manifest whose layers are, in this order: the VM's configuration, one or more disk chunks, the
NVRAM. Chunk *i* starts on the disk where chunk *i - 1* ends; its compressed and raw digests are both in the manifest.
The format does not fix the chunk size. The identity of an image is the sha256 of the manifest's bytes as served, never
of a re-serialisation.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from dataclasses import dataclass
from typing import Any, Final

from agent.images.errors import BadImageError
from agent.images.reference import is_digest

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
VM_CONFIG_TYPE: Final = "application/vnd.cirruslabs.tart.config.v1"
DISK_TYPE: Final = "application/vnd.cirruslabs.tart.disk.v2"
NVRAM_TYPE: Final = "application/vnd.cirruslabs.tart.nvram.v1"

RAW_SIZE: Final = "org.cirruslabs.tart.uncompressed-size"
RAW_DIGEST: Final = "org.cirruslabs.tart.uncompressed-content-digest"
DISK_SIZE: Final = "org.cirruslabs.tart.uncompressed-disk-size"
DISK_FORMAT_LABEL: Final = "org.cirruslabs.tart.disk.format"

MAX_MANIFEST_BYTES: Final = 8 << 20
"""Twice the common limit of registries; about 20,000 chunks."""
MAX_SMALL_BLOB_BYTES: Final = 1 << 20
MAX_NVRAM_BYTES: Final = 256 << 20
MAX_CHUNK_BYTES: Final = 2 << 30
"""Tart pushes chunks of 512 MiB."""
MAX_DISK_BYTES: Final = 64 << 40
SECTOR_BYTES: Final = 512

_REPR: Final = reprlib.Repr()
"""Shows hostile values: it cuts long ones, and does not descend into deep ones."""
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80

_REFUSED_TYPES: Final = {
    "application/vnd.cirruslabs.tart.disk.v1": "its disk is in Tart's first format, which Tart no longer accepts",
    "application/vnd.cirruslabs.tart.disk.asif.overlay.v1": "it is a stacked image, which needs macOS 27",
}


@dataclass(frozen=True, slots=True)
class Blob:
    """One blob of a repository: its digest and length in bytes."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of the disk: its compressed blob, the digest and size of its raw bytes, and its offset on the disk."""

    blob: Blob
    raw_digest: str
    raw_size: int
    offset: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checked VM image manifest."""

    digest: str
    raw: bytes
    oci_config: Blob
    vm_config: Blob
    chunks: tuple[Chunk, ...]
    nvram: Blob

    @property
    def disk_bytes(self) -> int:
        """Size of the disk in the guest."""
        return sum(chunk.raw_size for chunk in self.chunks)

    @property
    def total_bytes(self) -> int:
        """Compressed bytes of the chunks, the VM configuration and the NVRAM."""
        return self.vm_config.size + self.nvram.size + sum(chunk.blob.size for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class VmConfig:
    """The fields of Tart's config.json that Hearth uses."""

    os: str
    arch: str


def digest_of(content: bytes | bytearray | memoryview) -> str:
    """Return the digest of `content` in canonical form."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def descriptor(media_type: str, blob: Blob) -> dict[str, Any]:
    """Return the OCI descriptor of a blob."""
    return {"mediaType": media_type, "digest": blob.digest, "size": blob.size}


def parse_manifest(raw: bytes) -> Manifest:
    """Parse and check a manifest. Raises `BadImageError` with the reason if it is not a VM image."""
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BadImageError(f"the manifest is larger than {MAX_MANIFEST_BYTES} bytes")
    document = parse_json(raw, "the manifest")
    # The media type may be left out (OCI image specification, manifest.md): the layers decide then.
    if document.get("mediaType", MANIFEST_TYPE) != MANIFEST_TYPE or document.get("schemaVersion") != 2:
        raise BadImageError(
            f"not a VM image: its media type is {_shown(document.get('mediaType'))}, not {MANIFEST_TYPE}"
        )
    layers = document.get("layers")
    if not isinstance(layers, list) or len(layers) < 3:
        raise BadImageError("not a VM image: it has no VM configuration, disk and NVRAM among its layers")
    _check_order(layers)
    chunks = _parse_chunks(layers[1:-1])
    manifest = Manifest(
        digest=digest_of(raw),
        raw=raw,
        oci_config=_parse_blob(document.get("config"), "its config", MAX_SMALL_BLOB_BYTES),
        vm_config=_parse_blob(layers[0], "its VM configuration", MAX_SMALL_BLOB_BYTES),
        chunks=chunks,
        nvram=_parse_blob(layers[-1], "its NVRAM", MAX_NVRAM_BYTES),
    )
    _check_disk(manifest, document.get("annotations"))
    return manifest


def parse_vm_config(raw: bytes) -> VmConfig:
    """Read config.json. Raises `BadImageError`."""
    document = parse_json(raw, "the VM configuration")
    os, arch = document.get("os", "darwin"), document.get("arch", "arm64")
    if os not in ("darwin", "linux") or arch not in ("amd64", "arm64"):
        raise BadImageError(f"the VM configuration has the unsupported system {_shown(os)} on {_shown(arch)}")
    if document.get("diskFormat", "raw") == "asif":
        raise BadImageError("its disk is in Apple's ASIF format, which only macOS can read")
    return VmConfig(os, arch)


def parse_json(raw: bytes, what: str) -> dict[str, Any]:
    """Parse an object from hostile bytes. Raises `BadImageError` naming `what`."""
    try:
        document = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadImageError(f"{what} is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise BadImageError(f"{what} is not a JSON object")
    return document


def _check_order(layers: list[Any]) -> None:
    expected = [VM_CONFIG_TYPE, *[DISK_TYPE] * (len(layers) - 2), NVRAM_TYPE]
    for position, (layer, media_type) in enumerate(zip(layers, expected, strict=True)):
        found = layer.get("mediaType") if isinstance(layer, dict) else None
        if found == media_type:
            continue
        known = _REFUSED_TYPES.get(found) if isinstance(found, str) else None
        reason = known or f"layer {position} is {_shown(found)}, not {media_type}"
        raise BadImageError(f"not a usable VM image: {reason}")


def _parse_chunks(layers: list[dict[str, Any]]) -> tuple[Chunk, ...]:
    chunks = []
    offset = 0
    for number, layer in enumerate(layers):
        what = f"disk chunk {number}"
        annotations = layer.get("annotations")
        if not isinstance(annotations, dict):
            raise BadImageError(f"{what} has no annotations")
        raw_size = _parse_size(annotations.get(RAW_SIZE), f"the raw size of {what}", MAX_CHUNK_BYTES)
        raw_digest = annotations.get(RAW_DIGEST)
        if not isinstance(raw_digest, str) or not is_digest(raw_digest):
            raise BadImageError(f"{what} has the raw digest {_shown(raw_digest)}, not sha256: and 64 hex digits")
        # LZ4 grows incompressible data by less than 1 %. A longer blob cannot be this chunk.
        blob = _parse_blob(layer, what, raw_size + raw_size // 64 + 4096)
        chunks.append(Chunk(blob, raw_digest, raw_size, offset))
        offset += raw_size
    return tuple(chunks)


def _parse_blob(descriptor: object, what: str, limit: int) -> Blob:
    if not isinstance(descriptor, dict):
        raise BadImageError(f"{what} is missing")
    digest, size = descriptor.get("digest"), descriptor.get("size")
    if not isinstance(digest, str) or not is_digest(digest):
        raise BadImageError(f"{what} has the digest {_shown(digest)}, not sha256: and 64 hex digits")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= limit:
        raise BadImageError(f"{what} claims a size of {_shown(size)}, outside 0 to {limit} bytes")
    return Blob(digest, size)


def _parse_size(value: object, what: str, limit: int) -> int:
    if not isinstance(value, str) or not value.isascii() or not value.isdigit() or len(value) > 20:
        raise BadImageError(f"{what} is {_shown(value)}, not a number of bytes")
    size = int(value)
    if not 0 < size <= limit:
        raise BadImageError(f"{what} is {size}, outside 1 to {limit} bytes")
    return size


def _check_disk(manifest: Manifest, annotations: object) -> None:
    if manifest.disk_bytes > MAX_DISK_BYTES or manifest.disk_bytes % SECTOR_BYTES:
        raise BadImageError(f"the disk would be {manifest.disk_bytes} bytes, not whole sectors up to {MAX_DISK_BYTES}")
    claimed = annotations.get(DISK_SIZE) if isinstance(annotations, dict) else None
    if claimed is not None and _parse_size(claimed, "the disk size", MAX_DISK_BYTES) != manifest.disk_bytes:
        raise BadImageError(f"the disk claims {claimed} bytes, but its chunks are {manifest.disk_bytes} bytes together")


def _shown(value: object) -> str:
    return _REPR.repr(value)[:80]
