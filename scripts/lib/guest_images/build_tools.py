"""Host tools of a build: finding and running programs, the cache, atomic output files."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

REPOSITORY: Final = Path(__file__).resolve().parents[3]

ADMIN_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin"
"""Folders with half of the tools of a build. Debian omits them from the PATH of ordinary users."""

PACKAGE_OF: Final[Mapping[str, str]] = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "busybox": "busybox-static",
    "chroot": "coreutils",
    "cp": "coreutils",
    "debootstrap": "debootstrap",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "dpkg-query": "dpkg",
    "dropbear": "dropbear-bin",
    "extlinux": "extlinux",
    "fstrim": "util-linux",
    "gcc": "gcc",
    "ldd": "libc-bin",
    "mcopy": "mtools",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "modprobe": "kmod",
    "mount": "mount",
    "qemu-ga": "qemu-guest-agent",
    "sfdisk": "fdisk",
    "syslinux": "syslinux",
    "umount": "mount",
    "unshare": "util-linux",
}
"""The Debian package of each tool that a build runs or copies into a guest."""

TIMEOUT_S: Final = 900
"""Timeout of every tool. The slowest, debootstrap on a cold cache, takes about a minute."""


class BuildError(Exception):
    """A build failed. The message names what is missing or failed, and the remedy."""


def check_host() -> None:
    """Raise `BuildError` unless this is a Debian host on x86-64."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        system = f"{platform.system()} on {platform.machine()}"
        raise BuildError(
            f"guest images are built on Debian on x86-64 only, and this is {system}; "
            "build on a Debian machine and copy the disk to this one"
        )
    if not Path("/etc/debian_version").exists():
        raise BuildError("guest images are made from Debian packages; run this on Debian 12 or later")


def require(*tools: str) -> None:
    """Raise `BuildError` that names the Debian package of every missing tool."""
    missing = [tool for tool in tools if _find(tool) is None]
    if missing:
        packages = " ".join(sorted({PACKAGE_OF[tool] for tool in missing}))
        raise BuildError(f"missing {', '.join(missing)}; install with: apt-get install {packages}")


def program(tool: str) -> Path:
    """Return the path of a tool, with links resolved. Raises `BuildError` when it is missing."""
    require(tool)
    return Path(_find(tool) or tool).resolve()


def _find(tool: str) -> str | None:
    return shutil.which(tool, path=_search_path())


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:{ADMIN_PATH}"


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> str:
    """Run a tool and return its standard output. Raises `BuildError` with the tool's error output when it fails."""
    command = [str(part) for part in argv]
    settings = {**os.environ, "PATH": _search_path(), "LC_ALL": "C", **(env or {})}
    try:
        process = subprocess.Popen(
            command, cwd=cwd, env=settings, text=True, process_group=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        require(command[0])
        raise BuildError(f"cannot run {command[0]}: {error}") from error
    try:
        output, errors = process.communicate(stdin, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"`{shlex.join(command)}` did not end in {timeout_s:.0f} s") from error
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)  # with all its children
            process.wait()
    if process.returncode != 0:
        text = (errors or output).strip()[-2000:]
        raise BuildError(f"`{shlex.join(command)}` failed ({process.returncode}): {text}")
    return output


def cache_dir() -> Path:
    """Return the directory of downloads and cached pieces, below `$HEARTH_CACHE` or `.cache` in the repository."""
    root = Path(os.environ.get("HEARTH_CACHE") or REPOSITORY / ".cache").absolute() / "guest-images"
    root.mkdir(parents=True, exist_ok=True)
    return root


@contextmanager
def cache_lock() -> Iterator[Path]:
    """Lock the cache, so that concurrent builds do the work once. Yields the cache directory."""
    root = cache_dir()
    with (root / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield root


@contextmanager
def aside(final: Path) -> Iterator[Path]:
    """Yield a temporary path next to `final`. It replaces `final` when the block succeeds, and is removed otherwise."""
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{final.name}.") as folder:
        draft = Path(folder) / final.name
        yield draft
        draft.replace(final)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a disk with its holes. Shares blocks when the file system supports it."""
    run(["cp", "--reflink=auto", "--sparse=always", source, target])


def fingerprint(*parts: str) -> str:
    """Return a short digest of this builder's files and of `parts`, as a cache key."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        digest.update(f"{path.relative_to(folder)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    for part in parts:
        digest.update(f"{part}\0".encode())
    return digest.hexdigest()[:16]
