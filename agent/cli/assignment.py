"""`hearth assignment`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli import options
from agent.cli.output import print_json, print_line

if TYPE_CHECKING:
    from agent.config import Assignment

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Show or replace the desired state.")

_File = Annotated[Path, typer.Argument(help="A TOML or JSON file, or - for JSON on standard input.")]


@app.command()
def show(config: options.Config = None, socket: options.Socket = None, as_json: options.Json = False) -> None:
    """Print the assignment in force with every default. The output is JSON, with or without --json.

    \b
    hearth assignment show > pools.json
    """
    del as_json
    with options.build_client(socket, config) as client:
        print_json(client.get("/v1/assignment", object).document)


@app.command(name="set")
def replace(
    file: _File,
    if_match: Annotated[str, typer.Option(help="Replace only an assignment with this entity tag.")] = "",
    config: options.Config = None,
    socket: options.Socket = None,
    as_json: options.Json = False,
) -> None:
    """Replace the assignment of an agent whose configuration has `assignment.source = "api"`.

    \b
    hearth assignment set pools.toml
    """
    document = _read(file).model_dump(mode="json")
    headers = {"If-Match": f'"{if_match.strip(chr(34))}"'} if if_match else {}
    with options.build_client(socket, config) as client:
        answer = client.request("PUT", "/v1/assignment", object, document, headers=headers)
    pools = sorted(document["pools"])
    print_json(answer.document) if as_json else print_line(f"assigned: {', '.join(pools) or 'no pools'}")


def _read(file: Path) -> Assignment:
    """Return the validated assignment. Raises `ConfigError` with the invalid key."""
    from agent.config import ConfigError, load_assignment, parse_assignment  # noqa: PLC0415 - pydantic is slow to import

    if file.suffix != ".json" and str(file) != "-":
        return load_assignment(file)
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        document = json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be used: {error}", remedy="name a readable JSON or TOML file") from error
    return parse_assignment(document, source=str(file))
