"""Calls of the program `anka` and their results. Numbers such as A1 refer to docs/mac-contracts.md."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from agent.processes.command import Command, CommandError, CommandResult, CommandRunner

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.config.hypervisor import AnkaConfig

NOT_FOUND: Final = 3
NAME_TAKEN: Final = 18
REMEDY: Final = "install Anka from https://docs.veertu.com/anka, or name it under [hypervisor.anka] binary"
HOME: Final = "/usr/local/bin/anka"
ENVIRONMENT: Final = {"ANKA_LOG_LEVEL": "error"}  # A1: keeps log lines out of the output of commands in a guest


class AnkaError(CommandError):
    """`anka` reported an error. The message contains its output, and `number` its error code, if it reported one."""

    code = "anka-error"

    def __init__(self, message: str, *, number: int | None = None, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.number = number


class AnkaNotFoundError(AnkaError):
    """The VM, template or tag does not exist."""

    code = "anka-not-found"


class AnkaNameTakenError(AnkaError):
    """A VM with that name exists already."""

    code = "anka-name-taken"


class AnkaReplyError(AnkaError):
    """The output of `anka` is missing or invalid. It must not be taken as success, failure or an empty list."""

    code = "anka-answer"


@dataclass(frozen=True, slots=True)
class AnkaReply:
    """Result of a command that succeeded."""

    body: Any
    message: str = ""


@dataclass(frozen=True, slots=True)
class AnkaVm:
    """A VM or template in `anka list`. `version` is the checked-out tag; clones have none (A5)."""

    name: str
    uuid: str
    status: str
    version: str = ""

    @property
    def running(self) -> bool:
        """Whether the VM runs."""
        return self.status == "running"


class Anka:
    """The program `anka` of this host. It does not retry commands."""

    def __init__(self, config: AnkaConfig, runner: CommandRunner | None = None) -> None:
        self.config = config
        self._binary = config.binary or shutil.which("anka") or HOME
        self._runner = runner or CommandRunner()

    @property
    def program(self) -> str:
        """The path of `anka`."""
        return str(self._binary)

    @property
    def query_timeout_s(self) -> float:
        """Default timeout of a query, in seconds."""
        return self.config.timeout_s

    async def query(
        self, *arguments: str, timeout_s: float | None = None, on_output: Callable[[bytes], None] | None = None
    ) -> AnkaReply:
        """Run `anka -j ARGUMENTS` and return its reply. Raises `AnkaError` and other `CommandError`s."""
        command = self._command(("-j", *arguments), timeout_s or self.query_timeout_s)
        result = await self._runner.run(command, check=False, on_output=on_output)
        return parse_reply(result, f"anka {' '.join(arguments)}")

    async def run(self, *arguments: str, timeout_s: float, output_limit_bytes: int) -> CommandResult:
        """Run `anka ARGUMENTS` without JSON output, and return its result for any exit code."""
        command = replace(self._command(arguments, timeout_s), output_limit_bytes=output_limit_bytes)
        return await self._runner.run(command, check=False)

    def exec_prefix(self, name: str) -> tuple[str, ...]:
        """Return the arguments before a command for the guest of a VM. `anka run` starts a stopped VM (A16)."""
        return (str(self._binary), "run", name)

    async def list(self) -> tuple[AnkaVm, ...]:
        """Return all VMs and templates of this user. Raises `AnkaReplyError` if the list is not complete."""
        reply = await self.query("list")
        return tuple(_vm(entry) for entry in require_list(reply.body, "anka list"))

    async def tags(self, template: str) -> frozenset[str]:
        """Return the tags of a template on this host. Raises `AnkaNotFoundError`."""
        reply = await self.query("show", template, "tag")
        return frozenset(str(entry.get("tag")) for entry in require_list(reply.body, "anka show tag"))

    def _command(self, arguments: tuple[str, ...], timeout_s: float) -> Command:
        return Command((str(self._binary), *arguments), timeout_s, env=ENVIRONMENT, cwd=None, remedy=REMEDY)


def parse_reply(result: CommandResult, what: str) -> AnkaReply:
    """Parse the output of `anka -j`. Only the last non-empty line is used: some commands print several (A2)."""
    lines = result.stdout.decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    try:
        document = json.loads(last)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or "status" not in document:
        raise AnkaReplyError(f"`{what}` {_ended(result)} without a JSON reply: {_output(result)}")
    message = str(document.get("message") or "")
    if result.exit_code == 0 and document["status"] == "OK":
        return AnkaReply(document.get("body"), message)
    raise _failure(what, document, message or _output(result))


def require_list(body: object, what: str) -> list[dict[str, Any]]:
    """Return the entries of a list. Other values, also `{}` and null, are errors and not an empty list (A3)."""
    if not isinstance(body, list) or not all(isinstance(entry, dict) for entry in body):
        remedy = "run `anka list` as the agent's user; run `sudo anka license accept-eula` if it requires it"
        raise AnkaReplyError(f"`{what}` returned {json.dumps(body)[:80]} instead of a list", remedy=remedy)
    return body


def _vm(entry: dict[str, Any]) -> AnkaVm:
    try:
        name, uuid, status = entry["name"], entry["uuid"], entry["status"]
    except KeyError as error:
        raise AnkaReplyError(f"`anka list` returned an entry without {error}: {json.dumps(entry)[:200]}") from error
    return AnkaVm(str(name), str(uuid), str(status), str(entry.get("version") or ""))


def _failure(what: str, document: dict[str, Any], message: str) -> AnkaError:
    number = document.get("code")
    number = number if isinstance(number, int) else None
    kind: type[AnkaError] = {NOT_FOUND: AnkaNotFoundError, NAME_TAKEN: AnkaNameTakenError}.get(number or 0, AnkaError)
    if kind is AnkaError and message.endswith(": not found"):
        kind = AnkaNotFoundError
    return kind(f"`{what}` failed: {message}", number=number)


def _ended(result: CommandResult) -> str:
    return f"ended with exit code {result.exit_code}" if result.exit_code else "succeeded"


def _output(result: CommandResult) -> str:
    output = (result.stderr.strip() or result.stdout.strip()).decode(errors="replace")
    return output[-300:] or "no output"


def runs_as_root() -> bool:
    """Whether `anka` runs as root. VMs and logs of root are separate from those of users."""
    return os.geteuid() == 0
