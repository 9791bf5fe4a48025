"""`hearth config`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from agent.cli import options
from agent.cli.exits import Exit
from agent.cli.output import complain, print_json, say

if TYPE_CHECKING:
    from pathlib import Path

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Check configuration files.")


@app.callback()
def _group() -> None:
    pass


@app.command()
def check(config: options.Config = None, as_json: options.Json = False) -> int:
    """Check the configuration, and the assignment file it names, with the code the agent itself uses.

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
        told = f"; {result['assignment']}: {len(result['pools'])} pools" if result["assignment"] else ""
        say(f"{path} is good{told}")
    else:
        complain(errors[0])
    return Exit.BAD_CONFIGURATION if errors else Exit.OK
