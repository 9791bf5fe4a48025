"""The command tree. Only the command that runs is imported, so that `hearth --help` answers at once."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer
from typer.core import TyperGroup

from agent import __version__
from agent.cli.exits import Exit, exit_of
from agent.cli.output import complain, say
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Entry(NamedTuple):
    """Where a top-level command is found, and its line of help."""

    module: str
    attribute: str
    help: str


COMMANDS: Final[dict[str, Entry]] = {
    "run": Entry("agent.cli.run", "app", "Run the agent in the foreground."),
    "status": Entry("agent.cli.status", "app", "Show slots, pools, VMs, images and conditions of this host."),
    "cordon": Entry("agent.cli.modes", "cordon_app", "Give no leases any more; the pools stay warm."),
    "uncordon": Entry("agent.cli.modes", "uncordon_app", "Give leases again."),
    "drain": Entry("agent.cli.modes", "drain_app", "Empty this host."),
    "rollout": Entry("agent.cli.rollouts", "app", "Show rollouts, try one again, or undo one."),
    "vms": Entry("agent.cli.vms", "app", "List the VMs of this host, or replace one."),
    "lease": Entry("agent.cli.leases", "lease_app", "Claim a ready VM of a pool."),
    "exec": Entry("agent.cli.execute", "app", "Run a command on a fresh VM of a pool."),
    "renew": Entry("agent.cli.leases", "renew_app", "Let a lease live on."),
    "release": Entry("agent.cli.leases", "release_app", "End a lease; its VM is torn down."),
    "logs": Entry("agent.cli.logs", "app", "Show or follow the agent's log."),
    "events": Entry("agent.cli.events", "app", "Show or follow what happens on this host."),
    "assignment": Entry("agent.cli.assignment", "app", "Show or replace the desired state."),
    "support-bundle": Entry("agent.cli.bundle", "app", "Gather what explains this host's state, without secrets."),
    "token": Entry("agent.cli.tokens", "app", "Make, list and revoke the tokens of remote callers."),
    "journal": Entry("agent.cli.journal", "app", "Look at the journal while no agent runs; mend it."),
    "config": Entry("agent.cli.config", "app", "Check configuration files."),
    "service": Entry("agent.cli.service", "app", "Run Hearth under launchd on a Mac."),
    "doctor": Entry("agent.cli.doctor", "app", "Find what breaks this host, and mend it."),
    "image": Entry("agent.cli.image", "app", "Push, pull, list and inspect images."),
}


class LazyGroup(TyperGroup):
    """The root command: knows its commands by name and help, and imports the one that is called."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]  # noqa: ANN401
        """Return what stands for a command in help and completion."""
        entry = COMMANDS.get(cmd_name)
        return TyperGroup(name=cmd_name, help=entry.help) if entry else None

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]  # noqa: ANN401
        """Return the real command that `args` begin with."""
        self.commands = {name: self.get_command(ctx, name) for name in COMMANDS}  # for suggestions
        name, placeholder, rest = super().resolve_command(ctx, args)
        if placeholder is None or name is None:
            return name, placeholder, rest
        entry = COMMANDS[name]
        found: typer.Typer = getattr(importlib.import_module(entry.module), entry.attribute)
        return name, typer.main.get_command(found), rest


app = typer.Typer(
    cls=LazyGroup, no_args_is_help=True, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Warm pools of VM clones on a CI host: leased in milliseconds, replaced when sick.",
    epilog="Exit codes: 0 ok, 1 failure, 2 usage, 3 agent unreachable, 4 not found, 5 no VM free, 6 refused, "
    "78 bad configuration.",
)  # fmt: skip


def _version(value: bool) -> None:
    if value:
        say(f"hearth {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    host: Annotated[
        str,
        typer.Option(envvar="HEARTH_HOST", metavar="URL", help="An agent elsewhere; its token is in HEARTH_TOKEN."),
    ] = "",
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if host:
        os.environ["HEARTH_HOST"] = host


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Errors are told on stderr."""
    try:
        result = app(list(arguments), prog_name="hearth", standalone_mode=False)
    except HearthError as error:
        complain(error)
        return exit_of(error)
    except typer.TyperException as error:
        from typer.rich_utils import rich_format_error  # noqa: PLC0415 - rich is slow to import

        rich_format_error(error)  # type: ignore[arg-type]
        return Exit.USAGE
    except (typer.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    return result if isinstance(result, int) else Exit.OK
