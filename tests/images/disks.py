"""Small, sparse, reproducible disks and images for tests."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING, Final

from agent.images.download import TransferTools
from agent.images.liblz4 import best_codec
from agent.images.push import Pusher
from agent.images.sources.layout import OciLayout
from agent.images.transfer_limits import RetryPolicy
from agent.images.vmconfig import Hardware

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

MIB: Final = 1 << 20
QUICK: Final = RetryPolicy(attempts=4, patience_s=0.0, base_s=0.001, cap_s=0.01, retry_after_cap_s=0.5)


def write_disk(path: Path, *, mib: int = 8, seed: int = 1, every: int = 3) -> Path:
    """Write a sparse disk: random and repetitive bytes in each `every`th MiB, holes elsewhere."""
    chance = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(mib * MIB)
        for start in range(0, mib, every):
            file.seek(start * MIB + 4096 * chance.randrange(16))
            file.write(chance.randbytes(300_000) + b"all work and no play " * 10_000)
    return path


def sha256_of(path: Path) -> str:
    """Return the digest of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def push_layout(
    disk: Path, layout: Path, executor: Executor, *, tag: str = "v1", chunk_bytes: int = MIB, nvram: bytes = b""
) -> str:
    """Push a disk to an OCI layout in many small chunks, and return the digest."""
    tools = TransferTools(executor, best_codec(), QUICK, streams=4)
    return await Pusher(tools, chunk_bytes).push(disk, OciLayout(layout), tag, hardware=Hardware(), nvram=nvram)
