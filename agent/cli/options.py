"""Options that many commands share, the agent that they select, and the names that the shell completes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlsplit

import typer

from agent.cli.client import ApiClient
from agent.cli.documents import HostDocument, VmList
from agent.cli.endpoint import LocalEndpoint, RemoteEndpoint
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_CONFIG: Final = Path("/etc/hearth/hearth.toml")

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)?")
_UNIT_S: Final = {None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_COMPLETION_TIMEOUT_S: Final = 1.0


def parse_duration(text: str | float) -> float:
    """Return the seconds in `90`, `90s`, `15m`, `2h` or `1d`. Raises `BadParameter` for other texts."""
    match = _DURATION.fullmatch(str(text))  # Typer also passes the default here, which is a number
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a duration: write 90s, 15m, 2h or 1d")
    return float(match[1]) * _UNIT_S[match[2]]


def config_path(config: Path | None) -> Path:
    """Return the configuration file to use."""
    return config or DEFAULT_CONFIG


def select_endpoint(socket: Path | None, config: Path | None) -> LocalEndpoint | RemoteEndpoint:
    """Return the agent to connect to.

    The first of these decides: the given socket, HEARTH_HOST, the configuration, the default socket of this host.
    Raises `ConfigError` when the given or the default configuration file is invalid, and `LoginError` when a token file
    cannot be read.
    """
    if (url := os.environ.get("HEARTH_HOST")) and socket is None:
        return RemoteEndpoint.from_environment(url, os.environ)
    return LocalEndpoint(socket or _configured_socket(config))


def build_client(socket: Path | None, config: Path | None) -> ApiClient:
    """Return a client of the selected agent.

    Raises as `select_endpoint` does, and `AgentUnreachableError` for an invalid URL.
    """
    return ApiClient(select_endpoint(socket, config))


def remote_host() -> str:
    """Return the host name in HEARTH_HOST, or an empty string when the commands use the agent of this host."""
    url = os.environ.get("HEARTH_HOST", "")
    return urlsplit(url).hostname or "" if url else ""


def complete_pools(context: typer.Context, incomplete: str) -> list[str]:
    """Return the pool names that begin with `incomplete`."""

    def read_names(client: ApiClient) -> list[str]:
        host = client.request("GET", "/v1/host", HostDocument, timeout_s=_COMPLETION_TIMEOUT_S).document
        return [pool["name"] for pool in host["pools"]]

    return _complete(context, incomplete, read_names)


def complete_vms(context: typer.Context, incomplete: str) -> list[str]:
    """Return the VM names that begin with `incomplete`."""
    return _complete(context, incomplete, lambda client: [vm["name"] for vm in _list_vms(client)["vms"]])


def complete_leases(context: typer.Context, incomplete: str) -> list[str]:
    """Return the lease ids that begin with `incomplete`."""

    def read_ids(client: ApiClient) -> list[str]:
        leases = [vm["lease"] for vm in _list_vms(client)["vms"] if vm["lease"]]
        return [lease["id"] for lease in leases if lease["id"]]

    return _complete(context, incomplete, read_ids)


def complete_targets(context: typer.Context, incomplete: str) -> list[str]:
    """Return the pool names, VM names and lease ids that begin with `incomplete`."""
    return [
        *complete_pools(context, incomplete),
        *complete_vms(context, incomplete),
        *complete_leases(context, incomplete),
    ]


def _list_vms(client: ApiClient) -> VmList:
    return client.request("GET", "/v1/vms", VmList, timeout_s=_COMPLETION_TIMEOUT_S).document


def _complete(context: typer.Context, incomplete: str, read_names: Callable[[ApiClient], list[str]]) -> list[str]:
    """Return the matching names. An error would disturb the shell's prompt, so there are no names then."""
    given = {name: context.params.get(name) for name in ("socket", "config")}
    socket, config = (Path(value) if value else None for value in given.values())
    try:
        with build_client(socket, config) as client:
            return [name for name in read_names(client) if name.startswith(incomplete)]
    except HearthError:
        return []


def _configured_socket(config: Path | None) -> Path:
    from agent.config import Config as Configuration  # noqa: PLC0415 - keeps `--socket` and `--help` quick
    from agent.config import load_config  # noqa: PLC0415

    if config is None and not DEFAULT_CONFIG.exists():
        return Configuration().socket_path
    return load_config(config_path(config)).socket_path


Config = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", envvar="HEARTH_CONFIG", help=f"Configuration file. Default: {DEFAULT_CONFIG}.",
        show_default=False,
    ),
]  # fmt: skip
Socket = Annotated[
    Path | None,
    typer.Option(
        "--socket", envvar="HEARTH_SOCKET", help="Unix socket of the agent. Default: the one in the configuration.",
        show_default=False,
    ),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Wait = Annotated[
    float, typer.Option(parser=parse_duration, metavar="TIME", help="How long to wait for a ready VM, for example 5m.")
]
PoolName = Annotated[
    str, typer.Argument(help="The pool that the VM comes from.", show_default=False, autocompletion=complete_pools)
]
VmName = Annotated[
    str, typer.Argument(help="The VM's name, or its end.", show_default=False, autocompletion=complete_vms)
]
