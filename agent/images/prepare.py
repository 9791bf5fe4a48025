"""Readies the staging directory of a pull: what an earlier try left, what to clone, and the plan for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.images.journal import read_journal
from agent.images.plan import Here, Plan, make_plan, missing_chunks, wanted_blocks
from agent.images.reflink import clone_file
from agent.images.rehash import matching_chunks
from agent.images.store import DISK
from agent.images.zeros import zero_digests
from agent.processes.boot import boot_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from agent.images.blockindex import ChunkBlocks
    from agent.images.manifest import Manifest
    from agent.images.shelf import Shelf


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plan, and what the disk file holds already: a clone of `base`, or bytes of an interrupted try (`dirty`)."""

    plan: Plan
    base: Path | None
    dirty: bool


def prepare(manifest: Manifest, directory: Path, shelf: Shelf, index: Sequence[ChunkBlocks | None]) -> Prepared:
    """Decide what to do, cloning the disk of the image that shares most where the file system can. Blocks."""
    zeros = zero_digests(manifest)
    base: Path | None = None
    done = _recovered(manifest, directory)
    dirty = bool(done)
    if not done:
        base, done = _clone(manifest, directory, shelf, zeros)
    missing = missing_chunks(manifest, done=done, zero_digests=zeros)
    chunks = shelf.chunks(missing.keys())
    unknown = [numbers[0] for raw_digest, numbers in missing.items() if raw_digest not in chunks]
    blocks = shelf.blocks(wanted_blocks(unknown, index)) if index else {}
    here = Here(chunks, blocks)
    own = directory / DISK
    plan = make_plan(manifest, done=done, zero_digests=zeros, here=here, index=index, own_disk=own)
    return Prepared(plan, base, dirty)


def _recovered(manifest: Manifest, directory: Path) -> frozenset[int]:
    """Return the chunks that an interrupted try has verified; without any, its disk file is removed."""
    recovered = read_journal(directory, manifest.digest, boot=boot_id(), chunks=len(manifest.chunks))
    disk = directory / DISK
    numbers = recovered.numbers
    if not disk.exists() or disk.stat().st_size != manifest.disk_bytes:
        numbers = frozenset()
    elif not recovered.trusted:
        numbers = matching_chunks(disk, manifest, numbers)
    if not numbers:
        disk.unlink(missing_ok=True)  # it may hold bytes of unfinished chunks, where zeros must read as zeros
    return numbers


def _clone(
    manifest: Manifest, directory: Path, shelf: Shelf, zeros: dict[int, str]
) -> tuple[Path | None, frozenset[int]]:
    wanted = missing_chunks(manifest, done=(), zero_digests=zeros)
    found = shelf.base(manifest, wanted.keys())
    if found is None or not clone_file(found[0], directory / DISK):
        return None, frozenset()
    return found
