"""Command line of the self-test."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from scripts.lib.selftest.anka import AnkaChecks
from scripts.lib.selftest.report import Report
from scripts.lib.selftest.tart import TartChecks


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    made = argparse.ArgumentParser(prog="scripts/mac-selftest", description=__doc__)
    made.add_argument("--report", type=Path, default=Path("mac-selftest.json"), help="path of the JSON report")
    tools = made.add_subparsers(dest="tool", required=True)
    anka = tools.add_parser("anka")
    anka.add_argument("--program", default="anka")
    anka.add_argument("--template", required=True, help="UUID:TAG of a template on this Mac, with autologin")
    anka.add_argument(
        "--next", default="", help="another tag of the template, not on this Mac yet; it is pulled and kept"
    )
    anka.add_argument("--remote", default="", help="name of the Registry with that tag, as in `anka registry`")
    shrink = "also check `pull --shrink`; it removes the other tags of the template from this Mac"
    anka.add_argument("--shrink", action="store_true", help=shrink)
    tart = tools.add_parser("tart")
    tart.add_argument("--program", default="tart")
    tart.add_argument("--image", required=True, help="host/name@sha256:… in Tart's cache, with the guest agent")
    return made


async def run(arguments: argparse.Namespace) -> Report:
    """Run all checks of one tool."""
    report = Report(arguments.tool)
    if arguments.tool == "anka":
        template, _, tag = arguments.template.partition(":")
        source = (template, tag, arguments.next, arguments.remote)
        await AnkaChecks(report, arguments.program, *source, shrink=arguments.shrink).run()
    else:
        await TartChecks(report, arguments.program, arguments.image).run()
    return report


def main() -> int:
    """Run the checks, print and save the report; return 1 when an answer differs from what the drivers expect."""
    arguments = parser().parse_args()
    report = asyncio.run(run(arguments))
    arguments.report.write_text(report.to_json())
    sys.stdout.write(f"{report.to_text()}\n\nFull report to send back: {arguments.report}\n")
    return 0 if report.as_expected else 1


if __name__ == "__main__":
    sys.exit(main())
