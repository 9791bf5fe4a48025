"""Check of every image in the store against its own manifest, byte for byte, with an optional repair.

The repair removes damaged images and rebuilds the indexes. Pulling an image again takes less time than finding out what
a wrong bit does to a build.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from agent.images.chunk_digests import chunk_matches
from agent.images.errors import ImageError
from agent.images.manifest import Blob, Chunk, Manifest, digest_of, parse_manifest
from agent.images.store import CONFIG, DISK, MANIFEST, NVRAM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor
    from pathlib import Path

    from agent.images.reuse_index import ReuseIndex
    from agent.images.store import Store

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem in the store. `image` is a digest; `repaired` is set if the image was removed."""

    image: str
    problem: str
    repaired: bool


def check_store(store: Store, reuse_index: ReuseIndex, executor: Executor, *, repair: bool) -> tuple[Finding, ...]:
    """Check all images, several chunks in parallel. Blocks until all of their data was read."""
    findings: list[Finding] = []
    for digest in store.digests():
        problems = tuple(_problems(digest, store.path(digest), executor))
        if problems and repair:
            store.remove(digest)
            reuse_index.drop(digest)
            log.warning("damaged-image-removed", image=digest, problem=problems[0])
        findings.extend(Finding(digest, problem, repair) for problem in problems)
    if repair:
        reuse_index.rebuild()
        store.staging.sweep()
    return tuple(findings)


def _problems(digest: str, folder: Path, executor: Executor) -> Iterator[str]:
    try:
        raw = (folder / MANIFEST).read_bytes()
        manifest = parse_manifest(raw)
    except (OSError, ImageError) as error:
        yield f"its manifest is unusable: {error}"
        return
    if manifest.digest != digest:
        yield "its manifest belongs to another image"
        return
    yield from _file_problems(folder / CONFIG, manifest.vm_config)
    yield from _file_problems(folder / NVRAM, manifest.nvram)
    yield from _disk_problems(folder / DISK, manifest, executor)


def _file_problems(path: Path, blob: Blob) -> Iterator[str]:
    try:
        matches = path.stat().st_size == blob.size and digest_of(path.read_bytes()) == blob.digest
    except OSError as error:
        yield f"{path.name} cannot be read: {error.strerror}"
        return
    if not matches:
        yield f"{path.name} has changed"


def _disk_problems(path: Path, manifest: Manifest, executor: Executor) -> Iterator[str]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        yield f"{path.name} cannot be read: {error.strerror}"
        return
    try:
        if os.fstat(descriptor).st_size != manifest.disk_bytes:
            yield f"{path.name} is not {manifest.disk_bytes} bytes long"
            return
        results = executor.map(lambda chunk: _matches(descriptor, chunk), manifest.chunks)
        for number, matches in enumerate(results):
            if not matches:
                yield f"chunk {number} of {path.name} has changed"
    finally:
        os.close(descriptor)


def _matches(descriptor: int, chunk: Chunk) -> bool:
    try:
        return chunk_matches(descriptor, chunk)
    except OSError:
        return False
