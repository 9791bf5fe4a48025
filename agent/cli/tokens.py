"""`hearth token`."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli import options
from agent.cli.output import print_json, say

if TYPE_CHECKING:
    from pathlib import Path

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Make, list and revoke the tokens of remote callers."
)

_Name = Annotated[str, typer.Argument(help="Who uses it: a controller, a person.")]


class RoleName(StrEnum):
    """The roles, each of which may do all that the ones before it may."""

    READ = "read"
    LEASE = "lease"
    ADMIN = "admin"


@app.command()
def create(
    name: _Name,
    role: Annotated[RoleName, typer.Option(help="What it may do.")] = RoleName.READ,
    expires: Annotated[
        float | None, typer.Option(parser=options.parse_duration, metavar="TIME", help="How long it counts: 90d.")
    ] = None,
    config: options.Config = None,
) -> None:
    """Make a token and print it, this once: only its hash is kept. It counts from the next request on.

    \b
    hearth token create controller-1 --role lease --expires 90d
    """
    from agent.api.auth import Role, create_token  # noqa: PLC0415 - pydantic is slow to import

    say(create_token(_path(config), name, Role[role.upper()], now_s=time.time(), ttl_s=expires))


@app.command(name="list")
def list_tokens(config: options.Config = None, as_json: options.Json = False) -> None:
    """List the tokens: names, roles and times, never secrets."""
    from agent.api.auth import load_tokens  # noqa: PLC0415 - pydantic is slow to import

    tokens = load_tokens(_path(config))
    if as_json:
        print_json(
            [
                {
                    "name": token.name,
                    "role": token.role.name.lower(),
                    "created_at": _when(token.created_at_s),
                    "expires_at": _when(token.expires_at_s) if token.expires_at_s else None,
                }
                for token in tokens
            ]
        )
        return
    for token in tokens:
        end = f"expires {_when(token.expires_at_s)}" if token.expires_at_s else "never expires"
        say(f"{token.name:<24} {token.role.name.lower():<6} made {_when(token.created_at_s)}, {end}")


@app.command()
def revoke(name: _Name, config: options.Config = None) -> None:
    """Forget a token. It counts no more from the next request on."""
    from agent.api.auth import revoke_token  # noqa: PLC0415 - pydantic is slow to import

    revoke_token(_path(config), name)
    say(f"{name} is revoked")


def _path(config: Path | None) -> Path:
    from agent.api.auth import tokens_path  # noqa: PLC0415 - pydantic is slow to import
    from agent.config import load_config  # noqa: PLC0415

    return tokens_path(load_config(options.config_path(config)).data_dir)


def _when(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%MZ")
