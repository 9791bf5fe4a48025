"""Fixtures: guest disks, built once by scripts/demo-image and cached between runs."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BUILDER = REPOSITORY / "scripts" / "demo-image"

_BUILD_TIMEOUT_S = 170.0


class SmallImage(Protocol):
    """Returns the raw disk of a small guest. All tests share the disk: read or clone it, never write to it."""

    def __call__(self, version: str, *, unhealthy: bool = False, dies_after_s: int | None = None) -> Path: ...


@pytest.fixture(scope="session")
def small_image() -> SmallImage:
    """The disks of small guests by version and flavour: `small_image("1.0")`, `small_image("2.0", unhealthy=True)`."""
    return build_small_image


def build_small_image(version: str, *, unhealthy: bool = False, dies_after_s: int | None = None) -> Path:
    """Return the disk from the cache, or build it. The cache key is the builder's files and arguments."""
    arguments = ["small", "--version", version]
    if unhealthy:
        arguments.append("--unhealthy")
    if dies_after_s is not None:
        arguments.append(f"--dies-after={dies_after_s}")
    folder = Path(os.environ.get("HEARTH_CACHE") or REPOSITORY / ".cache") / "test-images" / _builder_digest()
    disk = folder / f"{'-'.join(arguments).replace('--', '')}.img"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes that need the same disk build it once
        if not disk.exists():
            build_image(*arguments, str(disk))
    return disk


def build_image(*arguments: str) -> None:
    """Run the builder; fail the test with its error output."""
    done = run_builder(*arguments)
    assert done.returncode == 0, done.stderr


def run_builder(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the builder; return its result, failed or not."""
    return subprocess.run(
        [sys.executable, BUILDER, *arguments],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=_BUILD_TIMEOUT_S,
    )


def _builder_digest() -> str:
    digest = hashlib.sha256(BUILDER.read_bytes())
    library = BUILDER.parent / "lib" / "guest_images"
    for path in sorted(path for path in library.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        digest.update(f"{path.relative_to(library)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
