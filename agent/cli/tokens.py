"""`hearth token`."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli import options
from agent.cli.output import print_json, print_line

if TYPE_CHECKING:
    from pathlib import Path

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Create, list and revoke the tokens of remote clients."
)

_Name = Annotated[str, typer.Argument(help="The client that uses it: a controller or a person.")]


class RoleName(StrEnum):
    """The roles. Each one includes the permissions of those before it."""

    READ = "read"
    LEASE = "lease"
    ADMIN = "admin"


@app.command()
def create(
    name: _Name,
    role: Annotated[RoleName, typer.Option(help="The permissions of the token.")] = RoleName.READ,
    expires: Annotated[
        float | None,
        typer.Option(parser=options.parse_duration, metavar="TIME", help="Time until it expires, for example 90d."),
    ] = None,
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """Create a token and print it. It cannot be shown again, because only its hash is stored.

    The agent accepts it from the next request on.

    \b
    hearth token create controller-1 --role lease --expires 90d
    """
    from agent.api.auth import Role, create_token  # noqa: PLC0415 - pydantic is slow to import

    token = create_token(_path(config), name, Role[role.upper()], now_s=time.time(), ttl_s=expires)
    print_json({"name": name, "token": token}) if as_json else print_line(token)


@app.command(name="list")
def list_tokens(config: options.Config = None, as_json: options.Json = False) -> None:
    """List names, roles and times of the tokens. Secrets are not shown.

    \b
    hearth token list --json
    """
    from agent.api.auth import load_tokens  # noqa: PLC0415 - pydantic is slow to import

    tokens = load_tokens(_path(config))
    if as_json:
        print_json(
            [
                {
                    "name": token.name,
                    "role": token.role.name.lower(),
                    "created_at": _format_time(token.created_at_s),
                    "expires_at": _format_time(token.expires_at_s) if token.expires_at_s else None,
                }
                for token in tokens
            ]
        )
        return
    for token in tokens:
        end = f"expires {_format_time(token.expires_at_s)}" if token.expires_at_s else "never expires"
        print_line(f"{token.name:<24} {token.role.name.lower():<6} created {_format_time(token.created_at_s)}, {end}")


@app.command()
def revoke(name: _Name, config: options.Config = None, as_json: options.Json = False) -> None:
    """Delete a token. The agent refuses it from the next request on.

    \b
    hearth token revoke controller-1
    """
    from agent.api.auth import revoke_token  # noqa: PLC0415 - pydantic is slow to import

    revoke_token(_path(config), name)
    print_json({"revoked": name}) if as_json else print_line(f"{name} is revoked")


def _path(config: Path | None) -> Path:
    from agent.api.auth import tokens_path  # noqa: PLC0415 - pydantic is slow to import
    from agent.config import load_config  # noqa: PLC0415

    return tokens_path(load_config(options.config_path(config)).data_dir)


def _format_time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%MZ")
