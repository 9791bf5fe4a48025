"""`hearth logs`."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

import typer

from agent.cli import options
from agent.cli.exits import Exit
from agent.cli.follow import all_lines, follow, last_lines, log_files
from agent.cli.output import say
from agent.cli.wanted import Level, Story, Wanted
from agent.domain.errors import HearthError

app = typer.Typer(add_completion=False)

_LINES: Final = 100
_ALL: Final = sys.maxsize

_File = Annotated[Path | None, typer.Option(help="A log file elsewhere.", show_default=False)]


class NoLogError(HearthError):
    """There is no log to show."""

    code = "no-log"


@app.command()
def logs(  # noqa: PLR0913, PLR0917 - one parameter is one option
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Go on showing new lines, until Ctrl-C.")] = False,
    lines: Annotated[
        int | None,
        typer.Option("--lines", "-n", min=0, help="How many of the last lines; 100, or all of a story.", metavar="N"),
    ] = None,
    vm: Annotated[str, typer.Option(help="The story of this VM; the end of its name will do.")] = "",
    lease: Annotated[str, typer.Option(help="The story of this lease, its VM's from the grant on.")] = "",
    pool: Annotated[str, typer.Option(help="Only lines of this pool.")] = "",
    level: Annotated[Level, typer.Option(help="Only lines of this level and graver ones.")] = Level.DEBUG,
    since: Annotated[
        float | None, typer.Option(parser=options.parse_duration, metavar="TIME", help="Only lines younger than this.")
    ] = None,
    file: _File = None,
    config: options.Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the lines as they are in the file.")] = False,
) -> int:
    """Show the agent's log for people, also when the agent does not run. Rotated files are read as needed.

    \b
    hearth logs -f
    hearth logs --vm 01jx4c --level warning
    hearth logs --lease 01jx4cd0
    hearth logs --since 1h --json | jq 'select(.event == "vm-failed")'
    """
    path = file or _log_path(config)
    stories = tuple(story for story in (Story("vm", vm), Story("lease", lease)) if story.end)
    wanted = Wanted(level, pool, _ago(since), stories)
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    if not path.parent.is_dir() or not (follow_it or log_files(path)):
        raise NoLogError(f"there is no log at {path}", remedy="start the agent, or name its --config or a --file")
    if stories:
        wanted.learn(all_lines(path))
    count = lines if lines is not None else _ALL if stories or since else _LINES
    found, follower = last_lines(path, count, wanted)
    try:
        for line in found:
            _show(line, as_json=as_json, colour=colour)
        sys.stdout.flush()
        if follow_it:
            for line in follow(follower, path):
                if wanted(line):
                    _show(line, as_json=as_json, colour=colour)
                    sys.stdout.flush()
    except KeyboardInterrupt:
        return Exit.OK
    finally:
        follower.close()
    return Exit.OK


def _ago(span_s: float | None) -> str:
    """Return the time that long ago, as lines of the log write it; empty for None."""
    return "" if span_s is None else (datetime.now(UTC) - timedelta(seconds=span_s)).strftime("%Y-%m-%dT%H:%M:%S")


def _show(line: str, *, as_json: bool, colour: bool) -> None:
    from agent.telemetry.log_rendering import render_json_line  # noqa: PLC0415

    say(line if as_json else render_json_line(line, colour=colour))


def _log_path(config: Path | None) -> Path:
    from agent.config import load_config  # noqa: PLC0415 - pydantic is slow to import
    from agent.telemetry.log_file import log_path  # noqa: PLC0415

    return log_path(load_config(options.config_path(config)).data_dir)
