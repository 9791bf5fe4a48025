"""`hearth assignment`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from agent.cli import options
from agent.cli.output import print_json, say

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Show or replace the desired state.")

_File = Annotated[Path, typer.Argument(help="A TOML or JSON file; - for JSON on standard input.")]


@app.command()
def show(config: options.Config = None, socket: options.Socket = None) -> None:
    """Print the assignment in force as JSON, every default filled in.

    \b
    hearth assignment show > pools.json
    """
    with options.client(socket, config) as client:
        print_json(client.get("/v1/assignment").document)


@app.command(name="set")
def replace(
    file: _File,
    if_match: Annotated[str, typer.Option(help="Only if the assignment still has this entity tag.")] = "",
    config: options.Config = None,
    socket: options.Socket = None,
) -> None:
    """Replace the assignment. Only where the configuration says `assignment.source = "api"`.

    \b
    hearth assignment set pools.toml
    """
    document = _read(file)
    headers = {"If-Match": f'"{if_match.strip(chr(34))}"'} if if_match else {}
    with options.client(socket, config) as client:
        answer = client.ask("PUT", "/v1/assignment", document, headers=headers)
    say(f"assigned: {', '.join(sorted(answer.document['pools'])) or 'no pools'}")


def _read(file: Path) -> object:
    """Return the assignment as data, checked before it is sent. Raises `ConfigError` naming the key at fault."""
    from agent.config import ConfigError, load_assignment, parse_assignment  # noqa: PLC0415 - pydantic is slow to import

    if file.suffix != ".json" and str(file) != "-":
        return load_assignment(file).model_dump(mode="json")
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        document = json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be used: {error}", remedy="name a readable JSON or TOML file") from error
    return parse_assignment(document, source=str(file)).model_dump(mode="json")
