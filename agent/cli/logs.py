"""`hearth logs`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

import typer

from agent.cli import options
from agent.cli.exit_codes import ExitCode
from agent.cli.log_filter import Level, LogFilter, RelatedLines
from agent.cli.log_reader import follow_lines, log_files, read_all_lines, read_last_lines
from agent.cli.output import is_colour_wanted, print_json_text, print_rendered
from agent.domain.errors import HearthError

app = typer.Typer(add_completion=False)

_LINES: Final = 100
_ALL: Final = sys.maxsize

_File = Annotated[Path | None, typer.Option(help="Read this log file.", show_default=False)]


class NoLogError(HearthError):
    """There is no log file."""

    code = "no-log"


@app.command()
def logs(  # noqa: PLR0913, PLR0917 - one parameter is one option
    is_following: Annotated[bool, typer.Option("--follow", "-f", help="Show new lines too, until Ctrl-C.")] = False,
    lines: Annotated[
        int | None,
        typer.Option(
            "--lines", "-n", min=0, metavar="N",
            help="How many of the last lines to show. Default: 100; all with --vm, --lease or --since.",
        ),
    ] = None,
    vm: Annotated[str, typer.Option(help="Show only lines about this VM; the end of its name is enough.")] = "",
    lease: Annotated[str, typer.Option(help="Show only lines about this lease, and its VM from the grant on.")] = "",
    pool: Annotated[str, typer.Option(help="Show only lines of this pool.")] = "",
    level: Annotated[Level, typer.Option(help="Show only lines of this level and more severe ones.")] = Level.DEBUG,
    since: Annotated[
        float | None,
        typer.Option(parser=options.parse_duration, metavar="TIME", help="Show only lines younger than this."),
    ] = None,
    file: _File = None,
    config: options.Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the lines unchanged.")] = False,
) -> int:  # fmt: skip
    """Show the agent's log in readable form, including rotated files. The agent need not run.

    \b
    hearth logs -f
    hearth logs --vm 01jx4c --level warning
    hearth logs --lease 01jx4cd0
    hearth logs --since 1h --json | jq 'select(.event == "vm-failed")'
    """
    path = file or _log_path(config)
    related = tuple(item for item in (RelatedLines("vm", vm), RelatedLines("lease", lease)) if item.suffix)
    selected = LogFilter(level, pool, _time_before(since), related)
    if not path.parent.is_dir() or not (is_following or log_files(path)):
        raise NoLogError(f"there is no log at {path}", remedy="start the agent, or name its --config or a --file")
    if related:
        selected.add_lines(read_all_lines(path))
    count = lines if lines is not None else _ALL if related or since else _LINES
    _print_lines(path, count, selected, is_following=is_following, as_json=as_json)
    return ExitCode.OK


def _print_lines(path: Path, count: int, selected: LogFilter, *, is_following: bool, as_json: bool) -> None:
    colour = is_colour_wanted()
    found, follower = read_last_lines(path, count, selected)
    try:
        for line in found:
            _print(line, as_json=as_json, colour=colour)
        sys.stdout.flush()
        if is_following:
            for line in filter(selected, follow_lines(follower, path)):
                _print(line, as_json=as_json, colour=colour)
                sys.stdout.flush()
    except KeyboardInterrupt:
        return
    finally:
        follower.close()


def _time_before(span_s: float | None) -> str:
    """Return the time that long ago in the format of log lines; an empty string for None."""
    return "" if span_s is None else (datetime.now(UTC) - timedelta(seconds=span_s)).strftime("%Y-%m-%dT%H:%M:%S")


def _print(line: str, *, as_json: bool, colour: bool) -> None:
    from agent.telemetry.log_rendering import render_json_line  # noqa: PLC0415

    print_json_text(line) if as_json else print_rendered(render_json_line(line, colour=colour))


def _log_path(config: Path | None) -> Path:
    from agent.config import load_config  # noqa: PLC0415 - pydantic is slow to import
    from agent.telemetry.log_file import log_path  # noqa: PLC0415

    return log_path(load_config(options.config_path(config)).data_dir)
