"""`hearth logs`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from agent.cli import options
from agent.cli.exits import Exit
from agent.cli.follow import follow, last_lines
from agent.cli.output import say
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from collections.abc import Mapping

app = typer.Typer(add_completion=False)

_File = Annotated[Path | None, typer.Option(help="A log file elsewhere.", show_default=False)]


class Level(StrEnum):
    """The levels of log lines, from chatty to grave."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


_RANK: Final[Mapping[str, int]] = {level: rank for rank, level in enumerate((*Level, "critical"))}


class NoLogError(HearthError):
    """There is no log to show."""

    code = "no-log"


@dataclass(frozen=True, slots=True)
class Filter:
    """Which lines are wanted. A key matches by its whole value or by its end: the end of a VM name is enough."""

    keys: Mapping[str, str]
    level: Level

    def __call__(self, line: str) -> bool:
        """Whether a raw line is wanted. What is no JSON object is, as long as nothing is asked for."""
        try:
            parsed = json.loads(line)
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            return not self.keys and self.level is Level.DEBUG
        if _RANK.get(str(parsed.get("level")), 0) < _RANK[self.level]:
            return False
        return all(str(parsed.get(key, "")).endswith(value) for key, value in self.keys.items())


@app.command()
def logs(  # noqa: PLR0913, PLR0917 - one parameter is one option
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Go on showing new lines, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")] = 100,
    vm: Annotated[str, typer.Option(help="Only lines of this VM; the end of its name will do.")] = "",
    pool: Annotated[str, typer.Option(help="Only lines of this pool.")] = "",
    lease: Annotated[str, typer.Option(help="Only lines of this lease.")] = "",
    level: Annotated[Level, typer.Option(help="Only lines of this level and graver ones.")] = Level.DEBUG,
    file: _File = None,
    config: options.Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the lines as they are in the file.")] = False,
) -> int:
    """Show the agent's log for people, also when the agent does not run. Rotated files are read as needed.

    \b
    hearth logs -f
    hearth logs --vm 01jx4c --level warning
    hearth logs -n 1000 --json | jq 'select(.event == "vm-failed")'
    """
    path = file or _log_path(config)
    keys = {key: value for key, value in {"vm": vm, "pool": pool, "lease": lease}.items() if value}
    wanted = Filter(keys, level)
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    if not path.parent.is_dir() or not (follow_it or path.exists()):
        raise NoLogError(f"there is no log at {path}", remedy="start the agent, or name its --config or a --file")
    found, follower = last_lines(path, lines, wanted)
    try:
        for line in found:
            _show(line, as_json=as_json, colour=colour)
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


def _show(line: str, *, as_json: bool, colour: bool) -> None:
    from agent.telemetry.render import render_json  # noqa: PLC0415

    say(line if as_json else render_json(line, colour=colour))


def _log_path(config: Path | None) -> Path:
    from agent.config import load_config  # noqa: PLC0415 - pydantic is slow to import
    from agent.telemetry.log import log_path  # noqa: PLC0415

    return log_path(load_config(options.config_path(config)).data_dir)
