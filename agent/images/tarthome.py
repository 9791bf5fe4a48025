"""A Tart home as an image store: images are stored in the layout of stock Tart, under Tart's own locks.

    $TART_HOME/cache/OCIs/<host>/<namespace>/sha256:<hex>/   the image, with the mark that protects it from Tart's gc
    $TART_HOME/cache/OCIs/<host>/<namespace>/<tag>           absolute symbolic link to the image
    $TART_HOME/cache/.hearth/                                Hearth's staging and indexes, which Tart never reads

`tart clone host/namespace@sha256:<hex> name` then needs no network. A version pulled from two repositories has an entry
in each; the entries share their disk.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from agent.images.errors import BadReferenceError, StoreError
from agent.images.files import sync_directory
from agent.images.locks import locked
from agent.images.reference import Reference, RegistryName, is_digest
from agent.images.staging import StagingArea
from agent.images.store import CONFIG, DISK, MANIFEST, NVRAM, images_in, most_recent_first, os_errors
from agent.processes.posix_locks import lock_holder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.domain.model import Image
    from agent.images.staging import Stage

MARK: Final = ".explicitly-pulled"
_WORD: Final = r"[a-zA-Z0-9]+(?:[._-][a-zA-Z0-9]+)*"
_TART_NAME: Final = re.compile(rf"[^/]+(?:/{_WORD})+(?::{_WORD})?")
"""The names that Tart parses; it takes another text for the name of a local VM. (Tart, OCI/Reference/Reference.g4.)"""
LOCK_TIMEOUT_S: Final = 1.0
"""A `tart pull` holds the lock of its registry during the whole download. After this time the caller retries."""


class TartHome:
    """The `Store` of one Tart home. `home` must equal TART_HOME as text, because Tart compares paths as text."""

    def __init__(self, home: Path, *, lock_timeout_s: float = LOCK_TIMEOUT_S) -> None:
        self._images = home / "cache" / "OCIs"
        self._content = home / "cache" / "content"
        self._lock_timeout_s = lock_timeout_s
        self.root = home / "cache" / ".hearth"
        self.staging = StagingArea(self.root / "staging")

    def prepare(self) -> None:
        """See `Store.prepare`."""
        with os_errors(self.root):
            self.staging.prepare()
            self._images.mkdir(parents=True, exist_ok=True)
            self._content.mkdir(parents=True, exist_ok=True)
            (self._content / ".gc.lock").touch()

    def has(self, digest: str) -> bool:
        """See `Store.has`."""
        return any(True for _ in self._entries(digest))

    def path(self, digest: str) -> Path:
        """See `Store.path`."""
        return next(self._entries(digest), self.root / "absent" / digest)

    def digests(self) -> list[str]:
        """See `Store.digests`."""
        with os_errors(self.root):
            return most_recent_first({path.name: path for path in self._entries()})

    def list(self) -> tuple[Image, ...]:
        """See `Store.list`."""
        directories: dict[str, Path] = {}
        names: dict[str, set[str]] = {}
        with os_errors(self.root):
            for path in self._entries():
                directories.setdefault(path.name, path)
                for link in path.parent.iterdir():
                    if link.is_symlink() and link.readlink() == path:
                        names.setdefault(path.name, set()).add(f"{self._repository(path.parent)}:{link.name}")
            return images_in(directories, names)

    def check(self, reference: Reference) -> None:
        """See `Store.check`. Tart identifies images by their registry, and parses fewer names than registries allow."""
        self._folder(reference)
        text = str(replace(reference, digest=None) if reference.tag else reference.name)
        if _TART_NAME.fullmatch(text) is None:
            raise BadReferenceError(
                f"Tart cannot parse the name {text}: it needs single . - _ between letters and digits",
                remedy="push the image under a name without double separators",
            )

    def find(self, reference: Reference) -> str | None:
        """See `Store.find`."""
        link = self._folder(reference) / reference.target
        digest = link.readlink().name if link.is_symlink() else link.name
        return digest if is_digest(digest) and _is_complete(link.parent / digest) else None

    def touch(self, digest: str) -> None:
        """See `Store.touch`."""
        for path in self._entries(digest):
            with suppress(FileNotFoundError):
                os.utime(path)

    def publish(self, reference: Reference, digest: str, stage: Stage) -> None:
        """See `Store.publish`."""
        target = self._folder(reference) / digest
        with os_errors(self.root):
            (stage.path / MARK).touch()
            sync_directory(stage.path)
            with self._locks(reference):
                target.parent.mkdir(parents=True, exist_ok=True)
                stage.path.rename(target)
                os.utime(target)
                sync_directory(target.parent)

    def remember(self, reference: Reference, digest: str) -> None:
        """See `Store.remember`. An entry of another repository shares the disk of the existing entry."""
        folder = self._folder(reference)
        with os_errors(self.root), self._locks(reference):
            if not _is_complete(folder / digest):
                self._share(self.path(digest), folder / digest)
            if reference.tag and not reference.digest:
                temporary = folder / f".{reference.tag}.new"
                temporary.unlink(missing_ok=True)
                temporary.symlink_to(folder / digest)
                temporary.rename(folder / reference.tag)

    def remove(self, digest: str) -> None:
        """See `Store.remove`. Raises `StoreError` if Tart has the image open."""
        with os_errors(self.root):
            for path in list(self._entries(digest)):
                with self._locks(Reference(self._repository(path.parent), digest=digest)):
                    if lock_holder(path / CONFIG) is not None:
                        raise StoreError(
                            f"the image {digest} is in use by Tart", remedy="retry when Tart has closed the image"
                        )
                    for link in path.parent.iterdir():
                        if link.is_symlink() and link.readlink() == path:
                            link.unlink()
                    self.staging.remove(path)

    def _entries(self, digest: str = "") -> Iterator[Path]:
        pattern = digest if is_digest(digest) else "sha256:*"
        for path in sorted(self._images.rglob(pattern)):
            if is_digest(path.name) and not path.is_symlink() and _is_complete(path):
                yield path

    def _folder(self, reference: Reference) -> Path:
        name = reference.name
        if not isinstance(name, RegistryName):
            remedy = "push the image to a registry and pull it from there"
            raise BadReferenceError(
                f"{reference} has no registry, but Tart identifies images by their registry", remedy=remedy
            )
        return self._images / _escaped(name.host) / name.namespace

    def _repository(self, folder: Path) -> RegistryName:
        host, *namespace = folder.relative_to(self._images).parts
        return RegistryName(host.replace("%3A", ":"), "/".join(namespace))

    def _share(self, source: Path, target: Path) -> None:
        stage = self.staging.path / f"share-{os.urandom(8).hex()}"
        stage.mkdir()
        try:
            for name in (DISK, NVRAM, MANIFEST):
                os.link(source / name, stage / name)
            # Tart locks this file, so each entry needs its own copy.
            shutil.copyfile(source / CONFIG, stage / CONFIG)
            (stage / MARK).touch()
            target.parent.mkdir(parents=True, exist_ok=True)
            stage.rename(target)
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    @contextmanager
    def _locks(self, reference: Reference) -> Iterator[None]:
        """Hold Tart's locks in Tart's order: first that of the registry, then that of its garbage collector."""
        self.prepare()
        self.check(reference)
        assert isinstance(reference.name, RegistryName)
        host = self._images / _escaped(reference.name.host)
        host.mkdir(exist_ok=True)
        timeout_s = self._lock_timeout_s
        with locked(host, timeout_s=timeout_s), locked(self._content / ".gc.lock", timeout_s=timeout_s):
            yield


def _escaped(host: str) -> str:
    return host.replace(":", "%3A")


def _is_complete(path: Path) -> bool:
    return all((path / name).is_file() for name in (CONFIG, DISK, NVRAM, MANIFEST))
