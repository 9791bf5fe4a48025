"""Command line of `scripts/demo-image`."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scripts.lib.guest_images import debian, small
from scripts.lib.guest_images.build_tools import BuildError, check_host

if TYPE_CHECKING:
    from collections.abc import Sequence

DESCRIPTION: Final = "Build guest disks for Hearth's demo and tests from Debian packages."
EXAMPLES: Final = """\
examples:
  scripts/demo-image small --version 1.0 one.img          healthy: agent, HTTP on 8080, SSH on 22
  scripts/demo-image small --version 2.0 --unhealthy two.img   boots and fails its probes
  scripts/demo-image small --version 3.0 --dies-after 20 three.img
  sudo scripts/demo-image debian --version 1 one.img      systemd, OpenSSH; the same probes pass
  sudo scripts/demo-image debian --version 2 --from one.img --add git two.img

Downloads and finished pieces are cached in $HEARTH_CACHE (default: .cache in the repository).
docs/guest-images.md describes the guests and how to start one manually.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the requested disk; return the exit code: 0, or 1 for a failed build. Wrong usage exits with 2."""
    options = _parser().parse_args(arguments)
    try:
        check_host()
        options.build(options)
    except BuildError as error:
        sys.stderr.write(f"demo-image: {error}\n")
        return 1
    sys.stdout.write(f"{options.out}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="demo-image",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    _add_small(kinds)
    _add_debian(kinds)
    return parser


def _add_small(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = kinds.add_parser("small", help="64 MiB, boots in about 3 s, needs no root")
    _add_common(parser)
    flavour = parser.add_mutually_exclusive_group()
    flavour.add_argument("--unhealthy", action="store_true", help="boots, but starts no agent, no HTTP and no SSH")
    flavour.add_argument(
        "--dies-after", type=_seconds, metavar="SECONDS", help="healthy, then powers off this long after its boot"
    )
    parser.add_argument("--refresh", action="store_true", help="download the newest kernel package first")
    parser.set_defaults(build=_build_small)


def _add_debian(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = kinds.add_parser("debian", help="4 GiB, sparse; systemd, OpenSSH; built as root")
    _add_common(parser)
    parser.add_argument("--from", type=Path, dest="start_from", metavar="OLD_DISK", help="the earlier version's disk")
    parser.add_argument(
        "--add",
        type=_package,
        action="append",
        default=[],
        metavar="PACKAGE",
        help="install this package too; repeatable",
    )
    parser.add_argument("--refresh", action="store_true", help="install the base system again first")
    parser.set_defaults(build=_build_debian)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--version", type=_version, required=True, help="version that the guest serves, for example 1.0"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the raw disk to write; replaced atomically")


def _build_small(options: argparse.Namespace) -> None:
    guest = small.SmallGuest(options.version, unhealthy=options.unhealthy, dies_after_s=options.dies_after)
    small.build(guest, options.out, refresh=options.refresh)


def _build_debian(options: argparse.Namespace) -> None:
    guest = debian.DebianGuest(options.version, packages=tuple(options.add), start_from=options.start_from)
    debian.build(guest, options.out, refresh=options.refresh)


def _version(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a version: letters, digits and . _ + - only, at most 64")
    return text


def _package(text: str) -> str:
    if re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a Debian package")
    return text


def _seconds(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of seconds from 1 to 86400")
    return int(text)
