"""An OCI image layout directory (OCI image specification, image-layout.md): a repository without a server.

Several processes may read and write it in parallel: blobs and `index.json` are replaced atomically, and a process that
changes the index locks the directory. A tag is the `org.opencontainers.image.ref.name` of an entry.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from agent.images.errors import BadImageError, ImageNotFoundError, RegistryError, TransferError
from agent.images.files import pread_into, replace_durably
from agent.images.locks import locked
from agent.images.manifest import INDEX_TYPE, MAX_MANIFEST_BYTES, digest_of, parse_json
from agent.images.reference import is_digest
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.images.manifest import Blob
    from agent.images.sources.contract import Write

REF_NAME: Final = "org.opencontainers.image.ref.name"
_VERSION: Final = b'{"imageLayoutVersion":"1.0.0"}'
_MAX_INDEX_BYTES: Final = 64 << 20
_READ_BYTES: Final = 1 << 20


class OciLayout:
    """One layout directory as a `Repository`. The first write creates it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def name(self) -> str:
        """See `Source.name`."""
        return f"oci-layout:{self._path}"

    async def digest(self, tag: str) -> str | None:
        """See `Source.digest`."""
        return await asyncio.to_thread(self._resolve, tag)

    async def manifest(self, target: str) -> bytes:
        """See `Source.manifest`."""
        return await asyncio.to_thread(self._manifest, target)

    @property
    def ranged(self) -> bool:
        """See `Source.ranged`."""
        return True

    async def read(self, blob: Blob, start: int, size: int, write: Write) -> None:
        """See `Source.read`."""
        buffer = memoryview(bytearray(min(_READ_BYTES, size)))
        for at in range(start, start + size, _READ_BYTES):
            piece = buffer[: start + size - at]
            await run_in_thread(self._read_piece, blob, at, piece)
            await write(piece)

    def distrust(self, blob: Blob) -> None:
        """See `Source.distrust`. There is no other source."""

    async def has(self, blob: Blob) -> bool:
        """See `Sink.has`."""
        return await asyncio.to_thread(self._has, blob)

    async def mount(self, blob: Blob, repository: str) -> bool:
        """See `Sink.mount`."""
        return False

    async def put(self, blob: Blob, content: bytes | bytearray) -> None:
        """See `Sink.put`."""
        await asyncio.to_thread(self._put, blob.digest, content)

    async def put_manifest(self, content: bytes, *, media_type: str, tag: str | None) -> bool:
        """See `Sink.put_manifest`."""
        await asyncio.to_thread(self._put_manifest, content, media_type, tag)
        return False

    async def referrers(self, digest: str) -> bytes | None:
        """See `Repository.referrers`."""
        return None

    def _blob_path(self, digest: str) -> Path:
        return self._path / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def _resolve(self, tag: str) -> str:
        entries = self._load_index()["manifests"]
        found = next((entry for entry in entries if _tag_of(entry) == tag), None)
        if found is None:
            tags = ", ".join(sorted({name for entry in entries if (name := _tag_of(entry))})[:10])
            known = f"its tags are {tags}" if tags else "it has no tags"
            raise ImageNotFoundError(
                f"{self.name} has no tag {tag!r}; {known}", remedy="correct the reference, or push the image first"
            )
        digest = found.get("digest")
        if not isinstance(digest, str) or not is_digest(digest):
            raise BadImageError(f"{self.name} has no digest for the tag {tag!r}")
        return digest

    def _manifest(self, target: str) -> bytes:
        digest = target if is_digest(target) else self._resolve(target)
        with self._os_errors():
            try:
                with self._blob_path(digest).open("rb") as file:
                    content = file.read(MAX_MANIFEST_BYTES + 1)
            except FileNotFoundError:
                raise ImageNotFoundError(
                    f"{self.name} has no version {digest}", remedy="correct the reference"
                ) from None
        if len(content) > MAX_MANIFEST_BYTES:
            raise BadImageError(f"{self.name} has a manifest larger than {MAX_MANIFEST_BYTES} bytes")
        return content

    def _read_piece(self, blob: Blob, offset: int, into: memoryview) -> None:
        path = self._blob_path(blob.digest)
        with self._os_errors():
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise ImageNotFoundError(f"{self.name} does not have the blob {blob.digest}") from None
            try:
                if os.fstat(descriptor).st_size != blob.size or pread_into(descriptor, into, offset) < len(into):
                    raise TransferError(f"{path} is not {blob.size} bytes long")
            finally:
                os.close(descriptor)

    def _has(self, blob: Blob) -> bool:
        path = self._blob_path(blob.digest)
        return path.is_file() and path.stat().st_size == blob.size

    def _put(self, digest: str, content: bytes | bytearray) -> None:
        with self._os_errors():
            path = self._blob_path(digest)
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_durably(path, content)

    def _put_manifest(self, content: bytes, media_type: str, tag: str | None) -> None:
        digest = digest_of(content)
        self._put(digest, content)
        entry: dict[str, Any] = {"mediaType": media_type, "digest": digest, "size": len(content)}
        if tag:
            entry["annotations"] = {REF_NAME: tag}
        with self._os_errors(), locked(self._path):
            if not (self._path / "oci-layout").exists():
                replace_durably(self._path / "oci-layout", _VERSION)
            index = self._load_index() if (self._path / "index.json").exists() else _new_index()
            index["manifests"] = _with_entry(index["manifests"], entry)
            replace_durably(self._path / "index.json", json.dumps(index).encode())

    def _load_index(self) -> dict[str, Any]:
        with self._os_errors():
            try:
                with (self._path / "index.json").open("rb") as file:
                    raw = file.read(_MAX_INDEX_BYTES)
            except (FileNotFoundError, NotADirectoryError):
                remedy = "correct the path, or push an image to it first"
                raise ImageNotFoundError(
                    f"{self._path} is not an OCI image layout: it has no index.json", remedy=remedy
                ) from None
        index = parse_json(raw, f"{self._path}/index.json")
        if not isinstance(index.get("manifests"), list):
            raise BadImageError(f"{self._path}/index.json has no list of manifests")
        return index

    @contextmanager
    def _os_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RegistryError(
                f"accessing {self.name} failed: {error}", remedy="check its disk and permissions"
            ) from error


def _new_index() -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}


def _tag_of(entry: object) -> str | None:
    annotations = entry.get("annotations") if isinstance(entry, dict) else None
    name = annotations.get(REF_NAME) if isinstance(annotations, dict) else None
    return name if isinstance(name, str) else None


def _with_entry(entries: list[Any], new: dict[str, Any]) -> list[Any]:
    """Return the entries with a new one, which replaces the entry with the same tag."""
    tag = _tag_of(new)
    if tag is None:
        return (
            entries
            if any(isinstance(e, dict) and e.get("digest") == new["digest"] for e in entries)
            else [*entries, new]
        )
    return [*(entry for entry in entries if _tag_of(entry) != tag), new]
