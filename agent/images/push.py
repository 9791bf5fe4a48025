"""Push of a raw disk as an image of small chunks of independent 64 KiB blocks. Existing blobs are not uploaded again.

The same disk with the same settings always becomes the same image, byte for byte: the image contains no time and no
machine. So a push that was interrupted or repeated uploads only the missing blobs.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from agent.images.blockindex import INDEX_TYPE, ChunkBlocks, block_digests, encode_index
from agent.images.chunk_digests import zero_digest
from agent.images.concurrency import run_all_or_raise_first
from agent.images.disk_files import data_extents
from agent.images.errors import BadDiskError
from agent.images.files import pread_into
from agent.images.lz4frame import encode_frame
from agent.images.manifest import (
    DISK_SIZE,
    DISK_TYPE,
    MANIFEST_TYPE,
    MAX_NVRAM_BYTES,
    NVRAM_TYPE,
    OCI_CONFIG_TYPE,
    RAW_DIGEST,
    RAW_SIZE,
    SECTOR_BYTES,
    VM_CONFIG_TYPE,
    Blob,
    descriptor,
    digest_of,
)
from agent.images.referrers import attach
from agent.images.vmconfig import Hardware, oci_config, vm_config
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from agent.images.download import TransferTools
    from agent.images.sources.contract import Repository

log = structlog.get_logger()

_Result = TypeVar("_Result")

CHUNK_BYTES: Final = 16 << 20
"""Raw bytes of a chunk. It is small enough that two versions share most chunks, and large enough that the manifest of a
100 GB disk stays far below the 4 MB that registries accept."""


@dataclass(frozen=True, slots=True)
class PushProgress:
    """Progress of a push, in bytes of the disk. `uploaded_bytes` are the compressed bytes that were sent."""

    total_bytes: int
    done_bytes: int
    uploaded_bytes: int


@dataclass(frozen=True, slots=True)
class _EncodedChunk:
    blob: Blob
    raw_digest: str
    raw_size: int
    content: bytearray
    blocks: ChunkBlocks | None  # None for zeros, which are never fetched


@dataclass(frozen=True, slots=True)
class Pusher:
    """Pushes disks. `chunk_bytes` is the raw size of a chunk."""

    tools: TransferTools
    chunk_bytes: int = CHUNK_BYTES

    async def push(
        self,
        disk: Path,
        sink: Repository,
        tag: str,
        *,
        hardware: Hardware,
        nvram: bytes = b"",
        mount_from: str | None = None,
        progress: Callable[[PushProgress], None] = lambda _: None,
    ) -> str:
        """Upload a raw disk as an image and return its digest. Raises `BadDiskError` if the file is not a raw disk.

        `mount_from` names another repository of the same registry, from which the registry mounts equal chunks.
        """
        size = await run_in_thread(check_disk, disk, len(nvram))
        descriptor = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
        try:
            upload = _Upload(self, sink, descriptor, size, mount_from, progress)
            await run_all_or_raise_first([upload.upload_chunks() for _ in range(self.tools.streams)])
        finally:
            os.close(descriptor)
        chunks = upload.chunk_layers()
        seed = "".join(annotated["annotations"][RAW_DIGEST] for annotated in chunks)
        small = [oci_config(hardware), vm_config(hardware, seed=seed), nvram]
        await run_all_or_raise_first([upload.send(content) for content in small])
        manifest = _manifest(chunks, small, size)
        subject = Blob(digest_of(manifest), len(manifest))
        index = encode_index(upload.blocks[offset] for offset in sorted(upload.blocks))
        await self.tools.retry.run(lambda: attach(sink, subject, INDEX_TYPE, index))
        # The tag is last: a client that sees the new version finds all of its parts.
        await self.tools.retry.run(lambda: sink.put_manifest(manifest, media_type=MANIFEST_TYPE, tag=tag))
        digest = subject.digest
        log.info("image-pushed", image=digest, sink=sink.name, uploaded_bytes=upload.uploaded)
        return digest


class _Upload:
    """The state of one push."""

    def __init__(
        self,
        pusher: Pusher,
        sink: Repository,
        descriptor: int,
        size: int,
        mount_from: str | None,
        progress: Callable[[PushProgress], None],
    ) -> None:
        self._tools = pusher.tools
        self._chunk_bytes = pusher.chunk_bytes
        self._sink = sink
        self._descriptor = descriptor
        self._size = size
        self._mount_from = mount_from
        self._progress = progress
        self._offsets = iter(range(0, size, pusher.chunk_bytes))
        self._extents = _DataExtents(descriptor, size)
        self._layers: dict[int, dict[str, Any]] = {}
        self.blocks: dict[int, ChunkBlocks | None] = {}
        self._sent: set[str] = set()
        self._done = 0
        self._advanced_at_s = -math.inf
        self.uploaded = 0

    async def upload_chunks(self) -> None:
        """Encode and upload chunks until none is left. Several workers run this in parallel."""
        for offset in self._offsets:
            encoded = await run_in_thread(self._encode, offset, executor=self._tools.executor)
            await self._send(encoded.blob, encoded.content)
            annotations = {RAW_SIZE: str(encoded.raw_size), RAW_DIGEST: encoded.raw_digest}
            self._layers[offset] = {**descriptor(DISK_TYPE, encoded.blob), "annotations": annotations}
            self.blocks[offset] = encoded.blocks
            self._done += encoded.raw_size
            self._progress(PushProgress(self._size, self._done, self.uploaded))

    async def send(self, content: bytes) -> None:
        """Upload a small blob unless the sink has it."""
        await self._send(Blob(digest_of(content), len(content)), content)

    def chunk_layers(self) -> list[dict[str, Any]]:
        """Return the manifest entries of all chunks, in the order of the disk."""
        return [self._layers[offset] for offset in sorted(self._layers)]

    async def _send(self, blob: Blob, content: bytes | bytearray) -> None:
        if blob.digest in self._sent:
            return
        self._sent.add(blob.digest)
        if await self._retry(lambda: self._sink.has(blob)):
            return
        if self._mount_from and await self._mount(blob, self._mount_from):
            return
        await self._retry(lambda: self._sink.put(blob, content))
        self.uploaded += blob.size

    async def _mount(self, blob: Blob, repository: str) -> bool:
        return await self._retry(lambda: self._sink.mount(blob, repository))

    async def _retry(self, operation: Callable[[], Awaitable[_Result]]) -> _Result:
        """Return the result of a request of this push, which persists while other requests succeed."""
        result = await self._tools.retry.run(operation, idle_s=lambda: time.monotonic() - self._advanced_at_s)
        self._advanced_at_s = time.monotonic()
        return result

    def _encode(self, offset: int) -> _EncodedChunk:
        raw = bytearray(min(self._chunk_bytes, self._size - offset))
        view = memoryview(raw)
        if self._extents.has_data(offset, len(raw)) and pread_into(self._descriptor, view, offset) < len(raw):
            raise BadDiskError("the disk became shorter during the push")
        content, lengths = encode_frame(view, self._tools.codec)
        raw_digest = digest_of(raw)
        blocks = None if raw_digest == zero_digest(len(raw)) else ChunkBlocks(lengths, block_digests(view))
        return _EncodedChunk(Blob(digest_of(content), len(content)), raw_digest, len(raw), content, blocks)


class _DataExtents:
    """The ranges of a sparse file that hold data, so that its holes are not read."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._extents = list(data_extents(descriptor, size))

    def has_data(self, offset: int, size: int) -> bool:
        """Return whether the range may hold data."""
        return any(start < offset + size and end > offset for start, end in self._extents)


def check_disk(disk: Path, nvram_bytes: int) -> int:
    """Return the size of a raw disk. Raises `BadDiskError` if the file or the NVRAM cannot be pushed."""
    try:
        size = disk.stat().st_size if disk.is_file() else -1
        with disk.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise BadDiskError(f"reading the disk {disk} failed: {error.strerror}", remedy="check its path") from error
    if size <= 0 or size % SECTOR_BYTES:
        raise BadDiskError(f"{disk} is not a raw disk: its size is not a multiple of {SECTOR_BYTES} bytes")
    if head == b"QFI\xfb":
        raise BadDiskError(
            f"{disk} is a qcow2 file", remedy=f"convert it with `qemu-img convert -O raw {disk} disk.img`"
        )
    if nvram_bytes > MAX_NVRAM_BYTES:
        raise BadDiskError(f"the NVRAM is larger than {MAX_NVRAM_BYTES} bytes")
    return size


def _manifest(chunks: list[dict[str, Any]], small: list[bytes], size: int) -> bytes:
    oci, config, nvram = (Blob(digest_of(content), len(content)) for content in small)
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor(OCI_CONFIG_TYPE, oci),
        "layers": [descriptor(VM_CONFIG_TYPE, config), *chunks, descriptor(NVRAM_TYPE, nvram)],
        "annotations": {DISK_SIZE: str(size)},
    }
    return json.dumps(document, separators=(",", ":")).encode()
