"""Options that many commands share, and what they lead to."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

import typer

from agent.cli import complete
from agent.cli.client import ApiClient
from agent.cli.place import Local, Remote

DEFAULT_CONFIG: Final = Path("/etc/hearth/hearth.toml")

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", envvar="HEARTH_CONFIG", help=f"Configuration file; {DEFAULT_CONFIG} unless given.",
        show_default=False,
    ),
]  # fmt: skip
Socket = Annotated[
    Path | None,
    typer.Option(
        "--socket", envvar="HEARTH_SOCKET", help="The agent's Unix socket; the configuration's unless given.",
        show_default=False,
    ),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

PoolName = Annotated[
    str, typer.Argument(help="The pool to take a VM from.", show_default=False, autocompletion=complete.pools)
]
VmName = Annotated[str, typer.Argument(help="The VM's name.", show_default=False, autocompletion=complete.vms)]

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)?")
_UNIT_S: Final = {None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: str | float) -> float:
    """Return the seconds in `90`, `90s`, `15m`, `2h` or `1d`. Raises the usage error for anything else."""
    match = _DURATION.fullmatch(str(text))  # a default comes as the number it is
    if match is None:
        raise typer.BadParameter(f"{text!r} is no duration: write 90s, 15m, 2h or 1d")
    return float(match[1]) * _UNIT_S[match[2]]


Wait = Annotated[
    float, typer.Option(parser=parse_duration, metavar="TIME", help="How long to wait for a VM that is ready.")
]


def config_path(config: Path | None) -> Path:
    """Return the configuration file to use."""
    return config or DEFAULT_CONFIG


def place(socket: Path | None, config: Path | None) -> Local | Remote:
    """Return the agent that is meant: by its socket, by HEARTH_HOST, by its configuration, or this host's.

    Raises `ConfigError` when a configuration is named, or stands in the default place, and cannot be used, and
    `LoginError` when a token file cannot be read.
    """
    if (url := os.environ.get("HEARTH_HOST")) and socket is None:
        return Remote.of(url, os.environ)
    return Local(socket or _configured_socket(config))


def client(socket: Path | None, config: Path | None) -> ApiClient:
    """Return a client of the agent that is meant. Raises as `place` does, and for an address that is none."""
    return ApiClient(place(socket, config))


def remote_host() -> str:
    """Return the name of the other host whose agent is meant; empty for this host's."""
    url = os.environ.get("HEARTH_HOST", "")
    return urlsplit(url).hostname or "" if url else ""


def _configured_socket(config: Path | None) -> Path:
    from agent.config import Config as Configuration  # noqa: PLC0415 - keeps `--socket` and `--help` quick
    from agent.config import load_config  # noqa: PLC0415

    if config is None and not DEFAULT_CONFIG.exists():
        return Configuration().socket_path
    return load_config(config_path(config)).socket_path
