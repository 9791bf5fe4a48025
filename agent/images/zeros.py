"""Digests of zeros: a chunk that has one is a hole, and never fetched."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from agent.images.manifest import Manifest

_MAX_SIZES: Final = 4
"""An image has one chunk size and a shorter last chunk. More sizes than this are hashed for nobody."""
_STEP: Final = bytes(1 << 20)


def zero_digests(manifest: Manifest) -> dict[int, str]:
    """Return the digest of zeros for the chunk sizes of an image, by size. Blocks for 0.6 s per GiB the first time."""
    sizes: dict[int, None] = {}
    for chunk in manifest.chunks:
        sizes[chunk.raw_size] = None
        if len(sizes) == _MAX_SIZES:
            break
    return {size: zero_digest(size) for size in sizes}


@lru_cache(maxsize=64)
def zero_digest(size: int) -> str:
    """Return the digest of `size` zero bytes."""
    digest = hashlib.sha256()
    for _ in range(size // len(_STEP)):
        digest.update(_STEP)
    digest.update(_STEP[: size % len(_STEP)])
    return f"sha256:{digest.hexdigest()}"
