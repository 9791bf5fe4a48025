"""Preparation of a pull: keep the chunks of an interrupted attempt, or clone the most similar disk; plan the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.images.chunk_digests import matching_chunks, zero_digests
from agent.images.disk_files import clone_file
from agent.images.plan import ChunkOutline, LocalContent, make_plan, outline_chunks, portions, wanted_blocks
from agent.images.pull_checkpoint import read_checkpoint
from agent.images.store import DISK
from agent.processes.boot import boot_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from agent.images.blockindex import ChunkBlocks
    from agent.images.manifest import Manifest
    from agent.images.plan import Plan
    from agent.images.reuse_index import ReuseIndex


@dataclass(frozen=True, slots=True)
class PullPreparation:
    """The chunks to obtain, and the state of the disk file: a clone of `base`, or data of an interrupted attempt
    (`dirty`).
    """

    outline: ChunkOutline
    base: Path | None
    dirty: bool


def prepare_pull(manifest: Manifest, directory: Path, reuse_index: ReuseIndex) -> PullPreparation:
    """Return what a pull has to do. Clones the disk that shares most chunks if the file system can. Blocks."""
    digests_of_zeros = zero_digests(manifest)
    base: Path | None = None
    done = _finished_chunks(manifest, directory)
    dirty = bool(done)
    outline = outline_chunks(manifest, done=done, zero_digests=digests_of_zeros)
    if not done:
        wanted = {manifest.chunks[numbers[0]].raw_digest for numbers in outline.missing}
        found = reuse_index.find_base(manifest, wanted)
        if found is not None and clone_file(found[0], directory / DISK):
            base, done = found
            outline = outline_chunks(manifest, done=done, zero_digests=digests_of_zeros)
    return PullPreparation(outline, base, dirty)


def plan_portions(
    manifest: Manifest,
    outline: ChunkOutline,
    own_disk: Path,
    reuse_index: ReuseIndex,
    index: Sequence[ChunkBlocks | None],
) -> Iterator[Plan]:
    """Yield the plans for all missing chunks of `own_disk`, portion by portion. Each step blocks."""
    firsts: dict[bytes, int] = {}
    for portion in portions(outline.missing, index):
        chunks = reuse_index.find_chunks({manifest.chunks[numbers[0]].raw_digest for numbers in portion})
        unknown = [numbers[0] for numbers in portion if manifest.chunks[numbers[0]].raw_digest not in chunks]
        blocks = reuse_index.find_blocks(wanted_blocks(unknown, index)) if index else {}
        local = LocalContent(chunks, blocks)
        yield make_plan(manifest, portion, local=local, index=index, own_disk=own_disk, firsts=firsts)


def _finished_chunks(manifest: Manifest, directory: Path) -> frozenset[int]:
    """Return the chunks that an interrupted attempt has verified. Removes its disk file if there are none."""
    finished = read_checkpoint(directory, manifest.digest, boot=boot_id(), chunks=len(manifest.chunks))
    disk = directory / DISK
    numbers = finished.numbers
    if not disk.exists() or disk.stat().st_size != manifest.disk_bytes:
        numbers = frozenset()
    elif not finished.trusted:
        numbers = matching_chunks(disk, manifest, numbers)
    if not numbers:
        disk.unlink(missing_ok=True)  # it may hold data of unfinished chunks where the image has holes
    return numbers
