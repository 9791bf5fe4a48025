"""`hearth exec`: lease, run, release, with the guest's own exit code."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from agent.cli import options
from agent.cli.borrow import borrowed
from agent.cli.client import ApiClient
from agent.cli.exits import Exit
from agent.cli.output import complain
from agent.domain.errors import HearthError

app = typer.Typer(add_completion=False)


@app.command()
def execute(
    pool: options.PoolName,
    command: Annotated[list[str], typer.Argument(help="The program and its arguments; no shell in between.")],
    wait: options.Wait = 300.0,
    timeout: Annotated[
        float, typer.Option(parser=options.parse_duration, metavar="TIME", help="How long the command may take.")
    ] = 3600.0,
    with_input: Annotated[bool, typer.Option("--stdin", "-i", help="Give the command our standard input.")] = False,
    config: options.Config = None,
    socket: options.Socket = None,
) -> int:
    """Run a command on a fresh VM of a pool and end with its exit code. The VM is used for nothing else, and torn down.

    Output comes as the command writes it. Ctrl-C at any moment ends the command and gives the VM back.

    \b
    hearth exec small -- uname -a
    hearth exec small --timeout 20m -- sh -c 'cd /work && make test'
    tar c . | hearth exec small -i -- sh -c 'tar x && make test'
    """
    from agent.cli import guest  # noqa: PLC0415 - aiohttp is slow to import

    try:
        place = options.place(socket, config)
        with borrowed(partial(ApiClient, place), pool, wait_s=wait, purpose="exec") as lease:
            return guest.run(place, lease["id"], command, with_input=with_input, timeout_s=timeout) & 0xFF
    except HearthError as error:
        complain(error)
        return Exit.EXEC_FAILED
    except BrokenPipeError:
        return Exit.BROKEN_PIPE
