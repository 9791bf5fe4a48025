"""The host's side of a build: which tools are there, running them, the cache, and files that appear whole."""

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
"""Where Debian keeps half the tools of a build, and where a login that is not root does not look."""

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
"""The Debian package that holds each tool a build runs or copies into a guest."""

TIMEOUT_S: Final = 900
"""No tool of a build runs longer than this; the slowest, debootstrap on a cold cache, takes about a minute."""


class BuildError(Exception):
    """A build cannot go on; the message says what is missing or failed and the way out."""


def check_host() -> None:
    """Refuse, in words, a host whose packages cannot make these guests."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        here = f"{platform.system()} on {platform.machine()}"
        raise BuildError(
            f"guest images are built on Debian on x86-64 only, and this is {here}; "
            "build on a Debian machine and copy the disk here"
        )
    if not Path("/etc/debian_version").exists():
        raise BuildError("guest images are made from Debian packages; run this on Debian 12 or later")


def require(*tools: str) -> None:
    """Raise `BuildError` naming every missing tool's Debian package."""
    missing = [tool for tool in tools if _find(tool) is None]
    if missing:
        packages = " ".join(sorted({PACKAGE_OF[tool] for tool in missing}))
        raise BuildError(f"missing {', '.join(missing)}; install with: apt-get install {packages}")


def program(tool: str) -> Path:
    """Where a tool's file is, links followed. Raises `BuildError` when it is missing."""
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
    """Run a tool and return its standard output. Raises `BuildError` with the tool's own words when it fails."""
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
        output, complaints = process.communicate(stdin, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"`{shlex.join(command)}` did not end in {timeout_s:.0f} s") from error
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)  # with all that it started
            process.wait()
    if process.returncode != 0:
        words = (complaints or output).strip()[-2000:]
        raise BuildError(f"`{shlex.join(command)}` failed ({process.returncode}): {words}")
    return output


def cache_dir() -> Path:
    """The directory that keeps downloads and finished pieces: `$HEARTH_CACHE`, else `.cache` in the repository."""
    root = Path(os.environ.get("HEARTH_CACHE") or REPOSITORY / ".cache").absolute() / "guest-images"
    root.mkdir(parents=True, exist_ok=True)
    return root


@contextmanager
def cache_lock() -> Iterator[Path]:
    """Hold the cache for one build at a time, so that two builders started together do the work once."""
    root = cache_dir()
    with (root / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield root


@contextmanager
def aside(final: Path) -> Iterator[Path]:
    """Give a path beside `final` to write to; it becomes `final` when the block ends well and is removed otherwise."""
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{final.name}.") as folder:
        draft = Path(folder) / final.name
        yield draft
        draft.replace(final)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a disk, sharing its blocks where the file system can and keeping its holes everywhere."""
    run(["cp", "--reflink=auto", "--sparse=always", source, target])


def fingerprint(*parts: str) -> str:
    """A short digest of this builder's own files and of `parts`: what a cached piece was made from."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in sorted(p for p in here.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        digest.update(f"{path.relative_to(here)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    for part in parts:
        digest.update(f"{part}\0".encode())
    return digest.hexdigest()[:16]
