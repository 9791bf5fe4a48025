"""The simulated program `anka`: global flags, answers, and log lines on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.simulators.anka import commands
from tests.simulators.anka.arguments import Arguments
from tests.simulators.anka.faults import Faults
from tests.simulators.anka.state import AnkaFailure, Document, Home

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulators.anka.answer import Answer


def _transfer(home: Home, arguments: Arguments, faults: Faults) -> Answer:
    """Run a command that uses a registry. Its modules load only then: that takes longer than most commands."""
    from tests.simulators.anka import transfer  # noqa: PLC0415

    return transfer.COMMANDS[arguments.command](home, arguments, faults)


COMMANDS: Final[dict[str, Callable[[Home, Arguments, Faults], Answer]]] = {
    "list": commands.list_vms,
    "show": commands.show,
    "clone": commands.clone,
    "modify": commands.modify,
    "start": commands.start,
    "stop": commands.stop,
    "suspend": commands.suspend,
    "delete": commands.delete,
    "run": commands.run,
    "license": commands.license_state,
    "version": commands.version,
    "config": commands.config,
    "pull": _transfer,
    "registry": _transfer,
}


def main(root: str, argv: list[str]) -> None:
    """Run one command, print its answer and exit as `anka` does."""
    home = Home(Path(root))
    home.prepare()
    machine_readable = bool(os.environ.get("ANKA_MACHINE_READABLE"))
    while argv and argv[0] in ("-j", "--machine-readable", "--debug"):
        machine_readable = machine_readable or argv[0] != "--debug"
        argv = argv[1:]
    if argv[:1] == ["--version"]:
        argv = ["version"]
    name = argv[0] if argv else "help"
    with (home.root / "calls.log").open("a") as calls:
        calls.write(json.dumps([os.getpid(), *argv]) + "\n")
    if os.environ.get("ANKA_LOG_LEVEL") != "error":  # A1: JSON goes to stdout, logs to stderr
        sys.stderr.write(f"{time.strftime('%Y/%m/%d %H:%M:%S')} INFO anka[{os.getpid()}]: {name}\n")
    if name not in COMMANDS:
        _end({"status": "ERROR", "message": f"{name}: unknown command"}, "", 2, machine_readable=machine_readable)
    faults = Faults(home, name)
    try:
        faults.begin()
        arguments = Arguments(name, argv[1:], machine_readable=machine_readable)
        answer = COMMANDS[name](home, arguments, faults)
    except AnkaFailure as failure:
        document: Document = {"status": "ERROR", "message": str(failure), "body": {}, "code": failure.code}
        if failure.code == 3:
            document["exception_type"] = "VmNotFound"
        _end(document, f"anka: {failure}", failure.exit_code, machine_readable=machine_readable)
        return
    if answer.guest is not None:
        code, message = answer.guest
        sys.stderr.write(message)
        _leave(code)
    body = {} if faults.on("empty_body") else answer.body
    document = {"status": "OK", "body": body}
    if answer.message:
        document["message"] = answer.message
    _end(document, answer.text, 0, machine_readable=machine_readable)


def _end(document: Document, text: str, code: int, *, machine_readable: bool) -> None:
    """Print the last line, without a newline (A2), and exit."""
    if machine_readable:
        sys.stdout.write(json.dumps(document))
    else:
        (sys.stderr if code else sys.stdout).write(f"{text}\n")
    _leave(code)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
