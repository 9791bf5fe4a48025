"""Readies the staging directory of a pull: what an earlier try left, what to clone, and then plan after plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.images.journal import read_journal
from agent.images.outline import Outline, make_outline, portions
from agent.images.plan import Here, make_plan, wanted_blocks
from agent.images.reflink import clone_file
from agent.images.rehash import matching_chunks
from agent.images.store import DISK
from agent.images.zeros import zero_digests
from agent.processes.boot import boot_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from agent.images.blockindex import ChunkBlocks
    from agent.images.manifest import Manifest
    from agent.images.plan import Plan
    from agent.images.shelf import Shelf


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is to be done, and what the disk file holds already: a clone of `base`, or bytes of a try that was
    interrupted (`dirty`).
    """

    outline: Outline
    base: Path | None
    dirty: bool


def prepare(manifest: Manifest, directory: Path, shelf: Shelf) -> Prepared:
    """Look what is here, cloning the disk of the image that shares most where the file system can. Blocks."""
    zeros = zero_digests(manifest)
    base: Path | None = None
    done = _recovered(manifest, directory)
    dirty = bool(done)
    outline = make_outline(manifest, done=done, zero_digests=zeros)
    if not done:
        wanted = {manifest.chunks[numbers[0]].raw_digest for numbers in outline.missing}
        found = shelf.base(manifest, wanted)
        if found is not None and clone_file(found[0], directory / DISK):
            base, done = found
            outline = make_outline(manifest, done=done, zero_digests=zeros)
    return Prepared(outline, base, dirty)


def plans(
    manifest: Manifest, outline: Outline, own_disk: Path, shelf: Shelf, index: Sequence[ChunkBlocks | None]
) -> Iterator[Plan]:
    """Yield how all missing chunks come to `own_disk`, portion by portion. Each step blocks."""
    firsts: dict[bytes, int] = {}
    for portion in portions(outline.missing, index):
        chunks = shelf.chunks({manifest.chunks[numbers[0]].raw_digest for numbers in portion})
        unknown = [numbers[0] for numbers in portion if manifest.chunks[numbers[0]].raw_digest not in chunks]
        blocks = shelf.blocks(wanted_blocks(unknown, index)) if index else {}
        here = Here(chunks, blocks)
        yield make_plan(manifest, portion, here=here, index=index, own_disk=own_disk, firsts=firsts)


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
