"""What the shell completes after Tab: names that the agent has now. Silent and quick, or nothing at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer  # noqa: TC002 - typer reads the annotations

if TYPE_CHECKING:
    from collections.abc import Callable

_PATIENCE_S: Final = 1.0


def pools(context: typer.Context, incomplete: str) -> list[str]:
    """Return the pools that begin so."""
    return _found(context, incomplete, "/v1/host", lambda host: [pool["name"] for pool in host["pools"]])


def vms(context: typer.Context, incomplete: str) -> list[str]:
    """Return the VMs that begin so."""
    return _found(context, incomplete, "/v1/vms", lambda answer: [vm["name"] for vm in answer["vms"]])


def leases(context: typer.Context, incomplete: str) -> list[str]:
    """Return the leases that begin so."""

    def ids(answer: Any) -> list[str]:  # noqa: ANN401 - a document of the API
        return [vm["lease"]["id"] for vm in answer["vms"] if vm["lease"]]

    return _found(context, incomplete, "/v1/vms", ids)


def targets(context: typer.Context, incomplete: str) -> list[str]:
    """Return the pools, VMs and leases that begin so."""
    return [*pools(context, incomplete), *vms(context, incomplete), *leases(context, incomplete)]


def _found(context: typer.Context, incomplete: str, path: str, names: Callable[[Any], list[str]]) -> list[str]:
    from agent.cli import options  # noqa: PLC0415 - it names these functions
    from agent.domain.errors import HearthError  # noqa: PLC0415

    given = {name: context.params.get(name) for name in ("socket", "config")}
    socket, config = (Path(value) if value else None for value in given.values())
    try:
        with options.client(socket, config) as client:
            document = client.ask("GET", path, timeout_s=_PATIENCE_S).document
    except HearthError:
        return []
    return [name for name in names(document) if name.startswith(incomplete)]
