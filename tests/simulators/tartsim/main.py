"""The entry point: selects the command, applies its faults, and prints its errors."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Final

from tests.simulators.tartsim.errors import TartError, UsageError
from tests.simulators.tartsim.faults import Faults, begin, faults_of
from tests.simulators.tartsim.home import Home

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION: Final = "2.30.0"
COMMANDS: Final = {
    "clone": "storage:clone",
    "delete": "storage:delete",
    "exec": "guest_commands:execute",
    "fqn": "storage:fqn",
    "get": "commands:get",
    "ip": "guest_commands:ip",
    "list": "commands:list_vms",
    "prune": "storage:prune",
    "pull": "storage:pull",
    "rename": "storage:rename",
    "run": "run:run",
    "set": "commands:set_vm",
    "stop": "commands:stop",
    "suspend": "commands:suspend",
}
"""The module and function of each command. Only the requested one is imported."""


def main(argv: list[str]) -> int:
    """Run one command; return its exit code."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    home = Home()
    name = argv[0] if argv else "help"
    faults = faults_of(home.simulator, name)
    _record_call(home, argv)
    try:
        begin(faults)
        if name == "--version":
            sys.stdout.write(f"{VERSION}\n")
            return 0
        if name not in COMMANDS:
            raise UsageError(f"Unexpected argument '{name}'")
        if name not in ("clone", "pull"):
            home.collect_garbage()
        return _command(name)(home, faults, argv[1:]) or 0
    except TartError as error:
        sys.stderr.write(f"{error}\n")
        if isinstance(error, UsageError):
            sys.stderr.write(f"Usage: tart {name} <options>\n  See 'tart {name} --help' for more information.\n")
        return error.code


def _command(name: str) -> Callable[[Home, Faults, list[str]], int | None]:
    module, _, function = COMMANDS[name].partition(":")
    found: Callable[[Home, Faults, list[str]], int | None] = getattr(
        importlib.import_module(f"tests.simulators.tartsim.{module}"), function
    )
    return found


def _record_call(home: Home, argv: list[str]) -> None:
    """Record every call, for tests of the agent's calls."""
    call = {"argv": argv, "no_auto_prune": "TART_NO_AUTO_PRUNE" in os.environ, "pid": os.getpid(), "at_s": time.time()}
    with contextlib.suppress(OSError), (home.simulator / "calls.jsonl").open("a") as calls:  # the disk may be full
        calls.write(f"{json.dumps(call)}\n")
