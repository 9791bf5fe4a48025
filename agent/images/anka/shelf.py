"""Which versions this host holds, as far as we brought and proved them: one small file each.

`anka` tells which tags it has, not of what layers, nor whether a pull that failed left them broken (A18). So a version
is here when it is written down here *and* Anka has its tag; and a pull that did not end leaves a mark, so that what it
left is removed before the next one.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from agent.domain.model import Image, LocalImage
from agent.images.anka.version import Version
from agent.images.errors import ImageNotFoundError
from agent.images.files import replace_durably
from agent.images.reference import is_digest

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Held:
    """A version that was pulled and proven, with the references that meant it."""

    version: Version
    local: str  # UUID of its template on this host
    references: tuple[str, ...] = field(default=())
    owned: bool = True  # the template came with us: it may go when its last tag does


class VersionShelf:
    """The versions written down in a folder. All methods block shortly, and raise `OSError`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def all(self) -> dict[str, Held]:
        """Return every version by its digest, the least recently used first."""
        found = {}
        for path in self._folder.glob("*.json"):
            try:
                found[f"sha256:{path.stem}"] = (path.stat().st_mtime, _held(path.read_bytes()))
            except (FileNotFoundError, ValueError, TypeError, KeyError):
                continue  # removed since, or cut by a crash of the host: pulled again
        return {digest: held for digest, (_, held) in sorted(found.items(), key=lambda item: item[1][0])}

    def images(self, digests: frozenset[str]) -> tuple[Image, ...]:
        """Return some versions as the engine knows images, the least recently used first."""
        return tuple(
            Image(
                digest=digest,
                references=held.references,
                disk_bytes=held.version.size_bytes,
                allocated_bytes=held.version.size_bytes,
                last_used_at_s=self._used_at_s(digest),
            )
            for digest, held in self.all().items()
            if digest in digests
        )

    def use(self, digest: str) -> LocalImage:
        """Return a version as drivers need it, noting its use. Raises `ImageNotFoundError`."""
        held = self.all().get(digest)
        if held is None:
            raise ImageNotFoundError(f"the image {digest} is not on this host", remedy="pull it")
        os.utime(self._path(digest))
        known_as = f"{held.local}:{held.version.tag}"
        return LocalImage(digest, self._folder, self._path(digest), None, "darwin", _arch(held.version), known_as)

    def keep(self, held: Held) -> None:
        """Write down a version that is whole. What else had its template and tag is no more."""
        for digest, other in self.all().items():
            same = (other.local, other.version.tag) == (held.local, held.version.tag)
            if same and digest != held.version.digest:
                self.drop(digest)
        document = asdict(held) | {"version": json.loads(held.version.to_json())}
        replace_durably(self._path(held.version.digest), json.dumps(document).encode())
        self.mark(held.version).unlink(missing_ok=True)

    def owns(self, local: str) -> bool:
        """Whether a template came to this host with us."""
        return any(held.local == local and held.owned for held in self.all().values())

    def drop(self, digest: str) -> None:
        """Forget a version. Forgetting an unknown one succeeds."""
        if is_digest(digest):
            self._path(digest).unlink(missing_ok=True)

    def mark(self, version: Version) -> Path:
        """Return the file that stands while a version is being pulled."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{version.digest.removeprefix('sha256:')}.pulling"

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest.removeprefix('sha256:')}.json"

    def _used_at_s(self, digest: str) -> float:
        try:
            return self._path(digest).stat().st_mtime
        except FileNotFoundError:
            return 0.0


def _held(content: bytes) -> Held:
    document = json.loads(content)
    version = Version(**document["version"])
    return Held(version, document["local"], tuple(document["references"]), bool(document["owned"]))


def _arch(version: Version) -> str:
    return version.arch or "arm64"
