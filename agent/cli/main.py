"""The command tree. It imports only the command that runs, so that `hearth --help` is quick."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer
from typer.core import TyperGroup

from agent import __version__
from agent.cli.exit_codes import ExitCode, exit_code_for
from agent.cli.output import OutputError, ReaderGoneError, discard_output, print_error, print_line, print_note
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Entry(NamedTuple):
    """The module and attribute of a top-level command, its help line, and its heading in the help."""

    module: str
    attribute: str
    help: str
    panel: str


_OBSERVE: Final = "Observe"
_USE: Final = "Use VMs"
_OPERATE: Final = "Operate"
_ADMINISTER: Final = "Administer this host"

COMMANDS: Final[dict[str, Entry]] = {
    "status": Entry("agent.cli.status", "app", "Show slots, pools, VMs, images and conditions of a host.", _OBSERVE),
    "top": Entry("agent.cli.top", "app", "Show the processor share and memory of each VM.", _OBSERVE),
    "vms": Entry("agent.cli.vms", "app", "List VMs; show, explain or replace one.", _OBSERVE),
    "events": Entry("agent.cli.events", "app", "Show or follow the events of a host.", _OBSERVE),
    "exec": Entry("agent.cli.execute", "app", "Run a command on a fresh VM of a pool.", _USE),
    "ssh": Entry("agent.cli.ssh", "app", "Open a shell on a fresh VM of a pool, or on an existing VM.", _USE),
    "lease": Entry("agent.cli.leases", "lease_app", "Claim a ready VM of a pool.", _USE),
    "renew": Entry("agent.cli.leases", "renew_app", "Extend a lease.", _USE),
    "release": Entry("agent.cli.leases", "release_app", "End a lease and tear down its VM.", _USE),
    "cordon": Entry("agent.cli.host_modes", "cordon_app", "Stop granting leases; keep pools warm.", _OPERATE),
    "uncordon": Entry("agent.cli.host_modes", "uncordon_app", "Grant leases again.", _OPERATE),
    "drain": Entry("agent.cli.host_modes", "drain_app", "Empty a host.", _OPERATE),
    "rollout": Entry("agent.cli.rollouts", "app", "Show, retry or undo rollouts.", _OPERATE),
    "assignment": Entry("agent.cli.assignment", "app", "Show or replace the desired state.", _OPERATE),
    "run": Entry("agent.cli.run_agent", "app", "Run the agent in the foreground.", _ADMINISTER),
    "logs": Entry("agent.cli.logs", "app", "Show or follow the agent's log.", _ADMINISTER),
    "support-bundle": Entry(
        "agent.cli.support_bundle", "app", "Write the state of a host to an archive, without secrets.", _ADMINISTER
    ),
    "token": Entry("agent.cli.tokens", "app", "Create, list and revoke the tokens of remote clients.", _ADMINISTER),
    "config": Entry("agent.cli.config", "app", "Check configuration files.", _ADMINISTER),
    "service": Entry("agent.cli.service", "app", "Run the agent under launchd on a Mac.", _ADMINISTER),
    "doctor": Entry("agent.cli.doctor", "app", "Find problems of this host and fix them.", _ADMINISTER),
    "image": Entry("agent.cli.image", "app", "List, push, pull, check and remove images.", _ADMINISTER),
    "journal": Entry("agent.cli.journal", "app", "Inspect or rebuild the journal while no agent runs.", _ADMINISTER),
}


class LazyGroup(TyperGroup):
    """The root command: lists its commands by name and help line, and imports only the command that runs."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]  # noqa: ANN401
        """Return a placeholder of a command for help and completion."""
        entry = COMMANDS.get(cmd_name)
        return TyperGroup(name=cmd_name, help=entry.help, rich_help_panel=entry.panel) if entry else None

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]  # noqa: ANN401
        """Import and return the command that `args` begin with."""
        self.commands = {name: self.get_command(ctx, name) for name in COMMANDS}  # for suggestions
        name, placeholder, rest = super().resolve_command(ctx, args)
        if placeholder is None or name is None:
            return name, placeholder, rest
        entry = COMMANDS[name]
        found: typer.Typer = getattr(importlib.import_module(entry.module), entry.attribute)
        command = typer.main.get_command(found)
        _add_host_option(command)
        if ctx.params.get("host") and not _uses_agent(command, rest):
            raise typer.BadParameter(f"`hearth {name}` works on files of its own host: run it there")
        return name, command, rest


def _add_host_option(command: Any) -> None:  # noqa: ANN401 - a group or a command
    """Add `--host` to every command that connects to an agent, so that it can follow the command's name too."""
    for subcommand in getattr(command, "commands", {}).values():
        _add_host_option(subcommand)
    if _has_socket_option(command):
        command.params.append(_build_host_option())


def _uses_agent(command: Any, arguments: Sequence[str]) -> bool:  # noqa: ANN401 - a group or a command
    """Return whether the command that runs with these arguments connects to an agent."""
    subcommands = getattr(command, "commands", {})
    chosen = next((subcommands[argument] for argument in arguments if argument in subcommands), command)
    return _has_socket_option(command) or _has_socket_option(chosen)


def _has_socket_option(command: Any) -> bool:  # noqa: ANN401 - a group or a command
    return any(parameter.name == "socket" for parameter in command.params)


def _build_host_option() -> Any:  # noqa: ANN401 - a parameter of a command
    carrier = typer.Typer(add_completion=False)

    @carrier.command()
    def _carry(
        host: Annotated[
            str, typer.Option(metavar="URL", callback=_use_host, expose_value=False, help="Use the agent at this URL.")
        ] = "",
    ) -> None:
        raise AssertionError("only the option of this command is used")

    return next(parameter for parameter in typer.main.get_command(carrier).params if parameter.name == "host")


def _use_host(url: str) -> None:
    """Use the agent at this URL instead of the one in the environment."""
    if url:
        os.environ["HEARTH_HOST"] = url
        os.environ.pop("HEARTH_SOCKET", None)


app = typer.Typer(
    cls=LazyGroup, no_args_is_help=True, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Manage warm pools of VM clones on a CI host. Lease a VM in milliseconds; unhealthy VMs are replaced.",
    epilog="Exit codes: 0 ok, 1 failure, 2 usage, 3 agent unreachable, 4 not found, 5 no VM free, 6 refused, "
    "69 unsupported host, 70 watchdog, 78 bad configuration, 125 Hearth itself failed (exec, ssh), 130 Ctrl-C, "
    "141 broken pipe. Set HEARTH_TOKEN to log in at another host.",
)  # fmt: skip


def _version(value: bool) -> None:
    if value:
        print_line(f"hearth {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    host: Annotated[str, typer.Option(metavar="URL", help="Use the agent at https://HOST:PORT. [HEARTH_HOST]")] = "",
    token_file: Annotated[
        str, typer.Option(metavar="FILE", help="Read its token from this file. [HEARTH_TOKEN_FILE]")
    ] = "",
    ca: Annotated[str, typer.Option(metavar="FILE", help="Trust these certificate authorities. [HEARTH_CA]")] = "",
    cert: Annotated[str, typer.Option(metavar="FILE", help="Log in with this client certificate. [HEARTH_CERT]")] = "",
    key: Annotated[str, typer.Option(metavar="FILE", help="The private key of --cert. [HEARTH_KEY]")] = "",
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
    """Run one command line and return its exit code. Print errors on stderr."""
    try:
        result = app(list(arguments), prog_name="hearth", standalone_mode=False)
        sys.stdout.flush()
    except ReaderGoneError:
        discard_output()
        return ExitCode.BROKEN_PIPE
    except HearthError as error:
        if isinstance(error, OutputError):
            discard_output()
        print_error(error)
        return exit_code_for(error)
    except UnicodeEncodeError as error:
        print_note(f"the argument {error.object!r} is no text in the encoding of this system")
        return ExitCode.USAGE
    except typer.TyperException as error:
        from typer.rich_utils import rich_format_error  # noqa: PLC0415 - rich is slow to import

        rich_format_error(error)  # type: ignore[arg-type]
        return ExitCode.USAGE
    except (typer.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    return result if isinstance(result, int) else ExitCode.OK
