"""The command tree. Only the command that runs is imported, so that `hearth --help` answers at once."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer
from typer.core import TyperGroup

from agent import __version__
from agent.cli.exits import Exit, exit_of
from agent.cli.output import complain, say
from agent.cli.streams import OutputError, ReaderGoneError, give_up
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Entry(NamedTuple):
    """Where a top-level command is found, its line of help, and the heading it stands under there."""

    module: str
    attribute: str
    help: str
    panel: str


_SEE: Final = "See"
_USE: Final = "Use VMs"
_OPERATE: Final = "Operate"
_HERE: Final = "On the host itself"

COMMANDS: Final[dict[str, Entry]] = {
    "status": Entry("agent.cli.status", "app", "Show slots, pools, VMs, images and conditions of a host.", _SEE),
    "top": Entry("agent.cli.top", "app", "Watch what each VM takes of the host.", _SEE),
    "vms": Entry("agent.cli.vms", "app", "List the VMs, show one, tell its story, or replace it.", _SEE),
    "images": Entry("agent.cli.images", "app", "List the image versions, and how far pulls are.", _SEE),
    "events": Entry("agent.cli.events", "app", "Show or follow what happens.", _SEE),
    "exec": Entry("agent.cli.execute", "app", "Run a command on a fresh VM of a pool.", _USE),
    "ssh": Entry("agent.cli.ssh", "app", "Open a shell on a fresh VM of a pool, or on one that is there.", _USE),
    "lease": Entry("agent.cli.leases", "lease_app", "Claim a ready VM of a pool.", _USE),
    "renew": Entry("agent.cli.leases", "renew_app", "Let a lease live on.", _USE),
    "release": Entry("agent.cli.leases", "release_app", "End a lease; its VM is torn down.", _USE),
    "cordon": Entry("agent.cli.modes", "cordon_app", "Give no leases any more; the pools stay warm.", _OPERATE),
    "uncordon": Entry("agent.cli.modes", "uncordon_app", "Give leases again.", _OPERATE),
    "drain": Entry("agent.cli.modes", "drain_app", "Empty a host.", _OPERATE),
    "rollout": Entry("agent.cli.rollouts", "app", "Show rollouts, try one again, or undo one.", _OPERATE),
    "assignment": Entry("agent.cli.assignment", "app", "Show or replace the desired state.", _OPERATE),
    "run": Entry("agent.cli.run", "app", "Run the agent in the foreground.", _HERE),
    "logs": Entry("agent.cli.logs", "app", "Show or follow the agent's log.", _HERE),
    "support-bundle": Entry("agent.cli.bundle", "app", "Gather what explains its state, without secrets.", _HERE),
    "token": Entry("agent.cli.tokens", "app", "Make, list and revoke the tokens of remote callers.", _HERE),
    "config": Entry("agent.cli.config", "app", "Check configuration files.", _HERE),
    "service": Entry("agent.cli.service", "app", "Run Hearth under launchd on a Mac.", _HERE),
    "doctor": Entry("agent.cli.doctor", "app", "Find what breaks this host, and mend it.", _HERE),
    "image": Entry("agent.cli.image", "app", "Push, pull, list and inspect images in the store.", _HERE),
    "journal": Entry("agent.cli.journal", "app", "Look at the journal while no agent runs; mend it.", _HERE),
}


class LazyGroup(TyperGroup):
    """The root command: knows its commands by name and help, and imports the one that is called."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]  # noqa: ANN401
        """Return what stands for a command in help and completion."""
        entry = COMMANDS.get(cmd_name)
        return TyperGroup(name=cmd_name, help=entry.help, rich_help_panel=entry.panel) if entry else None

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]  # noqa: ANN401
        """Return the real command that `args` begin with."""
        self.commands = {name: self.get_command(ctx, name) for name in COMMANDS}  # for suggestions
        name, placeholder, rest = super().resolve_command(ctx, args)
        if placeholder is None or name is None:
            return name, placeholder, rest
        entry = COMMANDS[name]
        found: typer.Typer = getattr(importlib.import_module(entry.module), entry.attribute)
        command = typer.main.get_command(found)
        remote = _take_host(command)
        if not remote and ctx.params.get("host"):
            raise typer.BadParameter(f"`hearth {name}` works on the files of its own host: log in there")
        return name, command, rest


def _take_host(command: Any) -> bool:  # noqa: ANN401 - a group or a command
    """Let every command that speaks to an agent take `--host` itself too; return whether there is one."""
    found = [_take_host(inner) for inner in getattr(command, "commands", {}).values()]
    if any(parameter.name == "socket" for parameter in command.params):
        command.params.append(_host_option())
        found.append(True)
    return any(found)


def _host_option() -> Any:  # noqa: ANN401 - a parameter of a command
    carrier = typer.Typer(add_completion=False)

    @carrier.command()
    def _carry(
        host: Annotated[
            str, typer.Option(metavar="URL", callback=_use_host, expose_value=False, help="An agent elsewhere.")
        ] = "",
    ) -> None:
        raise AssertionError("only its option is used")

    return next(parameter for parameter in typer.main.get_command(carrier).params if parameter.name == "host")


def _use_host(url: str) -> None:
    """Speak to the agent at this address, whatever the environment says."""
    if url:
        os.environ["HEARTH_HOST"] = url
        os.environ.pop("HEARTH_SOCKET", None)


app = typer.Typer(
    cls=LazyGroup, no_args_is_help=True, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Warm pools of VM clones on a CI host: leased in milliseconds, replaced when unhealthy.",
    epilog="Exit codes: 0 ok, 1 failure, 2 usage, 3 agent unreachable, 4 not found, 5 no VM free, 6 refused, "
    "78 bad configuration, 125 exec and ssh: Hearth itself failed, 130 Ctrl-C, "
    "141 the output's reader has gone. Tokens come from HEARTH_TOKEN.",
)  # fmt: skip


def _version(value: bool) -> None:
    if value:
        say(f"hearth {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    host: Annotated[str, typer.Option(metavar="URL", help="An agent elsewhere: https://HOST:PORT. [HEARTH_HOST]")] = "",
    token_file: Annotated[str, typer.Option(metavar="FILE", help="Its token, where not in HEARTH_TOKEN.")] = "",
    ca: Annotated[str, typer.Option(metavar="FILE", help="Whom to trust for its certificate. [HEARTH_CA]")] = "",
    cert: Annotated[str, typer.Option(metavar="FILE", help="The certificate to show it. [HEARTH_CERT]")] = "",
    key: Annotated[str, typer.Option(metavar="FILE", help="The key of that certificate. [HEARTH_KEY]")] = "",
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    given = {"HEARTH_TOKEN_FILE": token_file, "HEARTH_CA": ca, "HEARTH_CERT": cert, "HEARTH_KEY": key}
    os.environ.update({name: value for name, value in given.items() if value})
    if token_file:
        os.environ.pop("HEARTH_TOKEN", None)
    if host:
        _use_host(host)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Errors are told on stderr."""
    try:
        result = app(list(arguments), prog_name="hearth", standalone_mode=False)
        sys.stdout.flush()
    except ReaderGoneError:
        give_up()
        return Exit.BROKEN_PIPE
    except HearthError as error:
        if isinstance(error, OutputError):
            give_up()
        complain(error)
        return exit_of(error)
    except typer.TyperException as error:
        from typer.rich_utils import rich_format_error  # noqa: PLC0415 - rich is slow to import

        rich_format_error(error)  # type: ignore[arg-type]
        return Exit.USAGE
    except (typer.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    return result if isinstance(result, int) else Exit.OK
