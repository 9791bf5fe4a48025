"""The image store: one immutable directory per complete image version.

<root>/sha256-<hex>/{config.json, disk.img, nvram.bin, manifest.json}
<root>/references.json      the version of each reference at its last pull
<root>/.staging/<hex>/      running and interrupted pulls, each locked by its process
<root>/.index/              indexes derived from the images, see `agent.images.reuse_index`
<root>/.lock                held while an image is published or removed, or a reference changes
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from agent.domain.model import Image, LocalImage
from agent.images.errors import ImageNotFoundError, StoreError
from agent.images.files import allocated_bytes, replace_durably, sync_directory
from agent.images.locks import locked
from agent.images.manifest import parse_vm_config
from agent.images.reference import is_digest
from agent.images.staging import StagingArea

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from agent.images.reference import Reference
    from agent.images.staging import Stage

CONFIG: Final = "config.json"
DISK: Final = "disk.img"
NVRAM: Final = "nvram.bin"
MANIFEST: Final = "manifest.json"
_PREFIX: Final = "sha256-"


class Store(Protocol):
    """A store of complete images on this host. All methods block, and raise `StoreError`."""

    @property
    def root(self) -> Path:
        """A directory on the store's volume for the store's other files."""

    @property
    def staging(self) -> StagingArea:
        """The staging directories of pulls."""

    def prepare(self) -> None:
        """Create the store's directories."""

    def has(self, digest: str) -> bool:
        """Return whether the store has the complete version."""

    def path(self, digest: str) -> Path:
        """Return the directory of a version, which may not exist."""

    def digests(self) -> list[str]:
        """Return the complete versions, the most recently used first."""

    def list(self) -> tuple[Image, ...]:
        """Return the complete images, the least recently used first."""

    def check(self, reference: Reference) -> None:
        """Raise `BadReferenceError` if this store cannot hold an image of that reference."""

    def find(self, reference: Reference) -> str | None:
        """Return the version of a reference at its last pull; None if the store does not have it.

        For a reference with a digest, that is the version itself, or the one that the index of this digest led to.
        """

    def touch(self, digest: str) -> None:
        """Mark a version as used now."""

    def publish(self, reference: Reference, digest: str, stage: Stage) -> None:
        """Move a complete staged version to the store atomically. Its files must be synced already."""

    def remember(self, reference: Reference, digest: str) -> None:
        """Record that a reference names this version, which the store must have."""

    def remove(self, digest: str) -> None:
        """Remove a version and its references. Removing an unknown version succeeds."""


class ImageStore:
    """The agent's own `Store`, in one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.staging = StagingArea(root / ".staging")

    def prepare(self) -> None:
        """See `Store.prepare`."""
        with os_errors(self.root):
            self.staging.prepare()
            (self.root / ".lock").touch()

    def has(self, digest: str) -> bool:
        """See `Store.has`."""
        return (self.path(digest) / MANIFEST).is_file()

    def path(self, digest: str) -> Path:
        """See `Store.path`."""
        return self.root / f"{_PREFIX}{digest.removeprefix('sha256:')}"

    def digests(self) -> list[str]:
        """See `Store.digests`."""
        with os_errors(self.root):
            return most_recent_first({_digest_of(path): path for path in self._published()})

    def list(self) -> tuple[Image, ...]:
        """See `Store.list`."""
        names: dict[str, set[str]] = {}
        for name, digest in self._references().items():
            names.setdefault(digest, set()).add(name)
        with os_errors(self.root):
            return images_in({_digest_of(path): path for path in self._published()}, names)

    def check(self, reference: Reference) -> None:
        """See `Store.check`. Accepts every reference."""

    def find(self, reference: Reference) -> str | None:
        """See `Store.find`."""
        if reference.digest and self.has(reference.digest):
            return reference.digest
        digest = self._references().get(str(reference))
        return digest if digest and self.has(digest) else None

    def touch(self, digest: str) -> None:
        """See `Store.touch`."""
        with suppress(FileNotFoundError):
            os.utime(self.path(digest))

    def publish(self, reference: Reference, digest: str, stage: Stage) -> None:
        """See `Store.publish`."""
        with os_errors(self.root), self._lock():
            sync_directory(stage.path)
            stage.path.rename(self.path(digest))
            os.utime(self.path(digest))
            sync_directory(self.root)

    def remember(self, reference: Reference, digest: str) -> None:
        """See `Store.remember`."""
        with os_errors(self.root), self._lock():
            references = self._references()
            if references.get(str(reference)) != digest:
                references[str(reference)] = digest
                self._write_references(references)

    def remove(self, digest: str) -> None:
        """See `Store.remove`."""
        if not is_digest(digest):
            return
        with os_errors(self.root), self._lock():
            # First, because a full disk has no space for the new file. References to missing images are ignored.
            self.staging.remove(self.path(digest))
            references = self._references()
            kept = {name: target for name, target in references.items() if target != digest}
            if kept != references:
                self._write_references(kept)

    def _published(self) -> Iterator[Path]:
        with suppress(FileNotFoundError):
            for path in sorted(self.root.iterdir()):
                if is_digest(_digest_of(path)) and (path / MANIFEST).is_file():
                    yield path

    def _references(self) -> dict[str, str]:
        path = self.root / "references.json"
        try:
            document: Any = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            remedy = "remove that file; the next pulls record the references again"
            raise StoreError(f"reading {path} failed: {error}", remedy=remedy) from error
        return {str(name): str(digest) for name, digest in document.items()} if isinstance(document, dict) else {}

    def _write_references(self, references: Mapping[str, str]) -> None:
        replace_durably(self.root / "references.json", json.dumps(references, indent=1, sort_keys=True).encode())

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.prepare()
        with locked(self.root / ".lock"):
            yield


def local_image(store: Store, digest: str) -> LocalImage:
    """Return the paths of a version for a driver. Raises `ImageNotFoundError`."""
    if not is_digest(digest) or not store.has(digest):
        raise ImageNotFoundError(f"the image {digest} is not on this host", remedy="pull the image")
    path = store.path(digest)
    with os_errors(store.root):
        config = parse_vm_config((path / CONFIG).read_bytes())
        nvram = path / NVRAM
        has_nvram = nvram.stat().st_size > 0
    return LocalImage(digest, path, path / DISK, nvram if has_nvram else None, config.os, config.arch)


def images_in(directories: Mapping[str, Path], names: Mapping[str, set[str]]) -> tuple[Image, ...]:
    """Return the images in the directories, by digest, the least recently used first."""
    images = []
    for digest, path in directories.items():
        with suppress(FileNotFoundError):  # removed after it was listed
            images.append(
                Image(
                    digest=digest,
                    references=tuple(sorted(names.get(digest, ()))),
                    disk_bytes=(path / DISK).stat().st_size,
                    allocated_bytes=allocated_bytes(path),
                    last_used_at_s=path.stat().st_mtime,
                )
            )
    return tuple(sorted(images, key=lambda image: (image.last_used_at_s, image.digest)))


def most_recent_first(directories: Mapping[str, Path]) -> list[str]:
    """Return the digests of the directories, damaged images included, the most recently used first."""
    used_at_s: dict[str, float] = {}
    for digest, path in directories.items():
        with suppress(FileNotFoundError):
            used_at_s[digest] = path.stat().st_mtime
    return sorted(used_at_s, key=lambda digest: -used_at_s[digest])


@contextmanager
def os_errors(root: Path) -> Iterator[None]:
    """Convert an `OSError` to a `StoreError` that names the store."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"accessing the image store {root} failed: {error}") from error


def _digest_of(path: Path) -> str:
    return path.name.replace("-", ":", 1)
