"""`hearth config`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from agent.cli import options
from agent.cli.exit_codes import ExitCode
from agent.cli.output import print_error, print_json, print_line

if TYPE_CHECKING:
    from pathlib import Path

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Check configuration files.")


@app.callback()
def _group() -> None:
    """Make Typer build a group, which it does not for a single command."""


@app.command()
def check(config: options.Config = None, as_json: options.Json = False) -> int:
    """Check the configuration, and the assignment file that it names, as the agent does at its start.

    \b
    hearth config check
    hearth config check --config ./hearth.toml --json
    """
    from agent.config import ConfigError, load_assignment, load_config  # noqa: PLC0415 - pydantic is slow to import

    path = options.config_path(config)
    result: dict[str, Any] = {"ok": True, "config": str(path), "assignment": None, "pools": [], "errors": []}
    errors: list[ConfigError] = []
    try:
        loaded = load_config(path)
        assignment: Path | None = loaded.assignment.file if loaded.assignment.source == "file" else None
        if assignment is not None:
            result["assignment"] = str(assignment)
            result["pools"] = sorted(load_assignment(assignment).pools)
    except ConfigError as error:
        errors.append(error)
        result |= {"ok": False, "errors": [{"message": error.message, "remedy": error.remedy}]}
    if as_json:
        print_json(result)
    elif not errors:
        count = len(result["pools"])
        pools = f"; {result['assignment']}: {count} {'pool' if count == 1 else 'pools'}" if result["assignment"] else ""
        print_line(f"{path} is valid{pools}")
    else:
        print_error(errors[0])
    return ExitCode.BAD_CONFIGURATION if errors else ExitCode.OK
