"""The images that are whole on this host: one directory each, immutable, visible only when complete.

    <root>/sha256-<hex>/{config.json, disk.img, nvram.bin, manifest.json}
    <root>/references.json      which version each pulled reference meant last
    <root>/.staging/<hex>/      pulls under way or interrupted; each locked by the process that works in it
    <root>/.lock                held for the moment of publishing, removing, or changing a reference

All methods block; `agent.images.service` calls them in threads.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import structlog

from agent.domain.model import Image, LocalImage
from agent.images.errors import ImageNotFoundError, StoreError
from agent.images.files import allocated_bytes, replace_durably, sync_directory
from agent.images.locks import locked, try_lock
from agent.images.manifest import parse_vm_config
from agent.images.reference import is_digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = structlog.get_logger()

CONFIG: Final = "config.json"
DISK: Final = "disk.img"
NVRAM: Final = "nvram.bin"
MANIFEST: Final = "manifest.json"
PARTIAL_KEEP_S: Final = 24 * 3600.0
"""How long an interrupted pull is kept for another try."""
_STAGING: Final = ".staging"
_PREFIX: Final = "sha256-"


class Stage:
    """A locked directory in which one image version is made whole."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    def close(self) -> None:
        """Let others work on this version."""
        os.close(self._lock)

    def discard(self) -> None:
        """Remove what was made so far."""
        shutil.rmtree(self.path, ignore_errors=True)


class ImageStore:
    """The store below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> None:
        """Make the store's directories. Raises `StoreError`."""
        with self._os_errors():
            (self.root / _STAGING).mkdir(parents=True, exist_ok=True)
            (self.root / ".lock").touch()

    def has(self, digest: str) -> bool:
        """Whether that version is whole here."""
        return (self.path(digest) / MANIFEST).is_file()

    def digests(self) -> list[str]:
        """Return the versions that are whole here, the latest used first."""
        found = sorted(self._published(), key=lambda path: -path.stat().st_mtime)
        return [f"sha256:{path.name.removeprefix(_PREFIX)}" for path in found]

    def list(self) -> tuple[Image, ...]:
        """Return all versions that are whole here, oldest use first."""
        references = self._references()
        images = []
        with self._os_errors():
            for path in self._published():
                digest = f"sha256:{path.name.removeprefix(_PREFIX)}"
                with suppress(FileNotFoundError):  # removed since it was listed
                    images.append(
                        Image(
                            digest=digest,
                            references=tuple(sorted(name for name, meant in references.items() if meant == digest)),
                            disk_bytes=(path / DISK).stat().st_size,
                            allocated_bytes=allocated_bytes(path),
                            last_used_at_s=path.stat().st_mtime,
                        )
                    )
        return tuple(sorted(images, key=lambda image: (image.last_used_at_s, image.digest)))

    def local(self, digest: str) -> LocalImage:
        """Return where a version lies. Raises `ImageNotFoundError`."""
        if not is_digest(digest) or not self.has(digest):
            raise ImageNotFoundError(f"the image {digest} is not on this host", remedy="pull it")
        path = self.path(digest)
        with self._os_errors():
            config = parse_vm_config((path / CONFIG).read_bytes())
            nvram = path / NVRAM
            has_nvram = nvram.stat().st_size > 0
        return LocalImage(digest, path, path / DISK, nvram if has_nvram else None, config.os, config.arch)

    def find(self, reference: str) -> str | None:
        """Return the version that a reference meant when it was last pulled here, if that version is whole."""
        digest = self._references().get(reference)
        return digest if digest and self.has(digest) else None

    def touch(self, digest: str) -> None:
        """Note that a version is in use now."""
        with suppress(FileNotFoundError):
            os.utime(self.path(digest))

    def try_stage(self, digest: str) -> Stage | None:
        """Open the staging directory of a version; None while another process works in it."""
        path = self.root / _STAGING / digest.removeprefix("sha256:")
        with self._os_errors():
            path.mkdir(exist_ok=True)
            try:
                lock = try_lock(path)
            except FileNotFoundError:
                return None
            if lock is None:
                return None
            # It may have been published, and so renamed, between the two calls.
            with suppress(FileNotFoundError):
                if os.fstat(lock).st_ino == path.stat().st_ino:
                    return Stage(path, lock)
            os.close(lock)
            return None

    def publish(self, digest: str, stage: Stage) -> None:
        """Make a whole staged version visible, at once. Its files must be on the disk already."""
        with self._os_errors(), self._lock():
            sync_directory(stage.path)
            stage.path.rename(self.path(digest))
            os.utime(self.path(digest))
            sync_directory(self.root)

    def remember(self, reference: str, digest: str) -> None:
        """Note which version a reference means now."""
        with self._os_errors(), self._lock():
            references = self._references()
            if references.get(reference) != digest:
                references[reference] = digest
                self._write_references(references)

    def remove(self, digest: str) -> None:
        """Remove a version and the references to it. Removing what is not there succeeds."""
        if not is_digest(digest):
            return
        with self._os_errors(), self._lock():
            references = self._references()
            kept = {name: meant for name, meant in references.items() if meant != digest}
            if kept != references:
                self._write_references(kept)
            # First out of sight in one step, so that a half-removed image is never seen.
            doomed = self.root / _STAGING / f"removed-{digest.removeprefix('sha256:')}-{os.urandom(4).hex()}"
            with suppress(FileNotFoundError):
                self.path(digest).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def sweep(self, *, older_than_s: float = PARTIAL_KEEP_S) -> int:
        """Remove what interrupted pulls and removals left, unless it is in use or young; return how many there were."""
        swept = 0
        with self._os_errors():
            for path in sorted((self.root / _STAGING).iterdir()):
                swept += self._sweep(path, older_than_s)
        return swept

    def _sweep(self, path: Path, older_than_s: float) -> bool:
        with suppress(FileNotFoundError):
            young = time.time() - path.stat().st_mtime < older_than_s
            if young and not path.name.startswith("removed-"):
                return False
            lock = try_lock(path)
            if lock is None:
                return False
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
            log.info("partial-image-swept", image=path.name)
            return True
        return False

    def path(self, digest: str) -> Path:
        """Return where a version lies, or would."""
        return self.root / f"{_PREFIX}{digest.removeprefix('sha256:')}"

    def _published(self) -> Iterator[Path]:
        with suppress(FileNotFoundError):
            for path in sorted(self.root.iterdir()):
                if is_digest(path.name.replace("-", ":", 1)) and (path / MANIFEST).is_file():
                    yield path

    def _references(self) -> dict[str, str]:
        path = self.root / "references.json"
        try:
            document: Any = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            remedy = "remove that file; references are learnt again by pulling"
            raise StoreError(f"{path} cannot be read: {error}", remedy=remedy) from error
        return {str(name): str(digest) for name, digest in document.items()} if isinstance(document, dict) else {}

    def _write_references(self, references: dict[str, str]) -> None:
        replace_durably(self.root / "references.json", json.dumps(references, indent=1, sort_keys=True).encode())

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.prepare()
        with locked(self.root / ".lock"):
            yield

    @contextmanager
    def _os_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"the image store {self.root} cannot be used: {error}") from error
