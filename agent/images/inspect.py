"""Description of an image from its manifest and VM configuration, without pulling it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.images.download import Downloader
from agent.images.errors import CorruptImageError
from agent.images.manifest import digest_of, parse_manifest, parse_vm_config
from agent.images.pull_progress import PullProgressTracker
from agent.images.reference import parse_reference
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from agent.images.service import ImageService


@dataclass(frozen=True, slots=True)
class Description:
    """An image version in a repository. `local` is set if it is complete on this host."""

    reference: str
    digest: str
    os: str
    arch: str
    disk_bytes: int
    compressed_bytes: int
    chunks: int
    local: bool


async def describe(images: ImageService, reference: str) -> Description:
    """Fetch the description of the image that `reference` names now. Raises `ImageError` subclasses."""
    parsed = parse_reference(reference)
    source = images.repositories.open(parsed)
    digest = await images.resolve(reference)
    raw = await images.tools.retry.run(lambda: source.manifest(digest))
    if digest_of(raw) != digest:
        raise CorruptImageError(f"{source.name} sent a manifest whose digest is not {digest}")
    manifest = parse_manifest(raw)
    downloader = Downloader(source, images.tools, PullProgressTracker(reference, manifest.digest))
    content = await downloader.into_memory(manifest.vm_config)
    if digest_of(content) != manifest.vm_config.digest:
        raise CorruptImageError(f"{source.name} sent a blob whose digest is not {manifest.vm_config.digest}")
    config = parse_vm_config(bytes(content))
    return Description(
        reference=reference,
        digest=manifest.digest,
        os=config.os,
        arch=config.arch,
        disk_bytes=manifest.disk_bytes,
        compressed_bytes=manifest.total_bytes,
        chunks=len(manifest.chunks),
        local=await run_in_thread(images.store.has, manifest.digest),
    )
