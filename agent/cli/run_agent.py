"""`hearth run`."""

from __future__ import annotations

import typer

from agent.cli import options

app = typer.Typer(add_completion=False)


@app.command()
def run(config: options.Config = None) -> int:
    """Run the agent in the foreground until SIGTERM or Ctrl-C. VMs keep running when it ends.

    \b
    hearth run
    hearth run --config ./hearth.toml
    """
    from agent.daemon import run as run_daemon  # noqa: PLC0415 - imports the whole agent

    return run_daemon(options.config_path(config))
