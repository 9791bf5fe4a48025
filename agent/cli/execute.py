"""`hearth exec`."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from agent.cli import options
from agent.cli.client import ApiClient
from agent.cli.exit_codes import ExitCode
from agent.cli.output import print_error
from agent.cli.temporary_lease import temporary_lease
from agent.domain.errors import HearthError

app = typer.Typer(add_completion=False)


@app.command()
def execute(
    pool: options.PoolName,
    command: Annotated[list[str], typer.Argument(help="The program and its arguments. No shell interprets them.")],
    wait: options.Wait = 300.0,
    timeout: Annotated[
        float, typer.Option(parser=options.parse_duration, metavar="TIME", help="How long the command may run.")
    ] = 3600.0,
    with_input: Annotated[bool, typer.Option("--stdin", "-i", help="Forward standard input to the command.")] = False,
    config: options.Config = None,
    socket: options.Socket = None,
) -> int:
    """Run a command on a fresh VM of a pool, tear the VM down, and exit with the command's exit code.

    Output appears as the command writes it. Ctrl-C kills the command and releases the VM.

    \b
    hearth exec small -- uname -a
    hearth exec small --timeout 20m -- sh -c 'cd /work && make test'
    tar c . | hearth exec small -i -- sh -c 'tar x && make test'
    """
    from agent.cli import exec_client  # noqa: PLC0415 - aiohttp is slow to import

    try:
        endpoint = options.select_endpoint(socket, config)
        with temporary_lease(partial(ApiClient, endpoint), pool, wait_s=wait, purpose="exec") as lease:
            code = exec_client.run_command(endpoint, lease["id"], command, with_input=with_input, timeout_s=timeout)
            return code & 0xFF
    except HearthError as error:
        print_error(error)
        return ExitCode.EXEC_FAILED
    except BrokenPipeError:
        return ExitCode.BROKEN_PIPE
