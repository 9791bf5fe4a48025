"""Records of the versions that this agent pulled and verified, one small file each.

`anka` reports its tags, but not their layers, and not whether a failed pull left them broken (A18). Therefore a version
is present only if it has a record and Anka has its tag. A pull that did not finish leaves a marker file, so that the
next pull removes its remains first.
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
    from collections.abc import Collection
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """A version that was pulled and verified, with the references that named it."""

    version: Version
    local: str  # UUID of the template on this host
    references: tuple[str, ...] = field(default=())
    owned: bool = True  # the agent pulled the template, so it removes it with the last tag


class VersionRecords:
    """The records in one folder. All methods block briefly, and raise `OSError`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def all(self) -> dict[str, VersionRecord]:
        """Return all records by digest, the least recently used first."""
        found = {}
        for path in self._folder.glob("*.json"):
            try:
                found[f"sha256:{path.stem}"] = (path.stat().st_mtime, _parse(path.read_bytes()))
            except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):
                continue  # removed in the mean time, or truncated by a crash of the host: pulled again
        return {digest: record for digest, (_, record) in sorted(found.items(), key=lambda item: item[1][0])}

    def images(self, digests: Collection[str]) -> tuple[Image, ...]:
        """Return the images with these digests, the least recently used first."""
        return tuple(
            Image(
                digest=digest,
                references=record.references,
                disk_bytes=record.version.size_bytes,
                allocated_bytes=record.version.size_bytes,
                last_used_at_s=self._used_at_s(digest),
            )
            for digest, record in self.all().items()
            if digest in digests
        )

    def use(self, digest: str) -> LocalImage:
        """Return a version for a driver, and mark it as used now. Raises `ImageNotFoundError`."""
        record = self.all().get(digest)
        if record is None:
            raise ImageNotFoundError(f"the image {digest} is not on this host", remedy="pull the image")
        os.utime(self._path(digest))
        known_as = f"{record.local}:{record.version.tag}"
        return LocalImage(digest, self._folder, self._path(digest), None, "darwin", _arch(record.version), known_as)

    def save(self, record: VersionRecord) -> None:
        """Save the record of a complete version, in place of any other version of its template and tag."""
        for digest, other in self.all().items():
            same = (other.local, other.version.tag) == (record.local, record.version.tag)
            if same and digest != record.version.digest:
                self.drop(digest)
        document = asdict(record) | {"version": json.loads(record.version.to_json())}
        replace_durably(self._path(record.version.digest), json.dumps(document).encode())
        self.marker(record.version).unlink(missing_ok=True)

    def owns(self, local: str) -> bool:
        """Return whether this agent pulled the template."""
        return any(record.local == local and record.owned for record in self.all().values())

    def drop(self, digest: str) -> None:
        """Delete the record of a version, if it exists."""
        if is_digest(digest):
            self._path(digest).unlink(missing_ok=True)

    def marker(self, version: Version) -> Path:
        """Return the path of the file that exists while a version is being pulled. Creates its folder."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{version.digest.removeprefix('sha256:')}.pulling"

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest.removeprefix('sha256:')}.json"

    def _used_at_s(self, digest: str) -> float:
        try:
            return self._path(digest).stat().st_mtime
        except FileNotFoundError:
            return 0.0


def _parse(content: bytes) -> VersionRecord:
    document = json.loads(content)
    version = Version(**document["version"])
    return VersionRecord(version, document["local"], tuple(document["references"]), bool(document["owned"]))


def _arch(version: Version) -> str:
    return version.arch or "arm64"
