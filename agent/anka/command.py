"""One call of `anka`: how it is asked, and what its answer means. Numbers A1… are those of docs/mac-contracts.md."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from agent.processes.command import Command, CommandError, CommandResult, CommandRunner

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.config.hypervisor import AnkaConfig

NOT_FOUND: Final = 3
NAME_TAKEN: Final = 18
REMEDY: Final = "install Anka from https://docs.veertu.com/anka, or name it under [hypervisor.anka] binary"
HOME: Final = "/usr/local/bin/anka"
ENVIRONMENT: Final = {"ANKA_LOG_LEVEL": "error"}  # A1: what a guest's command prints is not to be mixed with logs


class AnkaError(CommandError):
    """`anka` says that it failed; the message holds its words, `number` its code where it told one."""

    code = "anka-error"

    def __init__(self, message: str, *, number: int | None = None, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.number = number


class AnkaNotFoundError(AnkaError):
    """There is no such VM, template or tag."""

    code = "anka-not-found"


class AnkaNameTakenError(AnkaError):
    """A VM has that name already."""

    code = "anka-name-taken"


class AnkaReplyError(AnkaError):
    """`anka` answered what cannot be understood, or nothing: neither a yes nor a no, and never an empty list."""

    code = "anka-answer"


@dataclass(frozen=True, slots=True)
class AnkaReply:
    """What a command that succeeded told."""

    body: Any
    message: str = ""


@dataclass(frozen=True, slots=True)
class AnkaVm:
    """A VM or template as `anka list` tells it. `version` is the tag checked out; clones have none (A5)."""

    name: str
    uuid: str
    status: str
    version: str = ""

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self.status == "running"


class Anka:
    """The program `anka` of this host. Nothing is retried here."""

    def __init__(self, config: AnkaConfig, runner: CommandRunner | None = None) -> None:
        self.config = config
        self._binary = config.binary or shutil.which("anka") or HOME
        self._runner = runner or CommandRunner()

    @property
    def program(self) -> str:
        """The path that `anka` is started by."""
        return str(self._binary)

    @property
    def query_timeout_s(self) -> float:
        """How long a question about what is on this host may take, in seconds."""
        return self.config.timeout_s

    async def query(
        self, *arguments: str, timeout_s: float | None = None, on_output: Callable[[bytes], None] | None = None
    ) -> AnkaReply:
        """Run `anka -j ARGUMENTS` and return its answer. Raises `AnkaError` subclasses and `CommandError`s."""
        command = self._command(("-j", *arguments), timeout_s or self.query_timeout_s)
        result = await self._runner.run(command, check=False, on_output=on_output)
        return parse_answer(result, f"anka {' '.join(arguments)}")

    async def run(self, *arguments: str, timeout_s: float) -> CommandResult:
        """Run `anka ARGUMENTS`, with no JSON around what it prints, and return how it ended."""
        return await self._runner.run(self._command(arguments, timeout_s), check=False)

    def exec_prefix(self, name: str) -> tuple[str, ...]:
        """Return what a command for a VM's guest is put behind. It starts a VM that does not run (A16)."""
        return (str(self._binary), "run", name)

    async def list(self) -> tuple[AnkaVm, ...]:
        """Return all VMs and templates of this user: complete, or an error."""
        answer = await self.query("list")
        return tuple(_vm(entry) for entry in require_list(answer.body, "anka list"))

    async def tags(self, template: str) -> frozenset[str]:
        """Return the tags that a template has on this host. Raises `AnkaNotFoundError`."""
        answer = await self.query("show", template, "tag")
        return frozenset(str(entry.get("tag")) for entry in require_list(answer.body, "anka show tag"))

    def _command(self, arguments: tuple[str, ...], timeout_s: float) -> Command:
        return Command((str(self._binary), *arguments), timeout_s, env=ENVIRONMENT, cwd=None, remedy=REMEDY)


def parse_answer(result: CommandResult, what: str) -> AnkaReply:
    """Return what an ended `anka -j` told. Its last line that is not empty counts: some print several (A2)."""
    lines = result.stdout.decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    try:
        document = json.loads(last)
    except ValueError:
        document = None
    if not isinstance(document, dict) or "status" not in document:
        raise AnkaReplyError(f"`{what}` {_ended(result)} and answered no JSON: {_said(result)}")
    message = str(document.get("message") or "")
    if result.exit_code == 0 and document["status"] == "OK":
        return AnkaReply(document.get("body"), message)
    raise _failure(what, document, message or _said(result))


def require_list(body: object, what: str) -> list[dict[str, Any]]:
    """Return the entries of a list. Anything else, `{}` and nothing included, is no empty list (A3)."""
    if not isinstance(body, list) or not all(isinstance(entry, dict) for entry in body):
        remedy = "run `anka list` as the agent's user; `sudo anka license accept-eula` if it asks for it"
        raise AnkaReplyError(f"`{what}` answered {json.dumps(body)[:80]} where a list belongs", remedy=remedy)
    return body


def _vm(entry: dict[str, Any]) -> AnkaVm:
    try:
        name, uuid, status = entry["name"], entry["uuid"], entry["status"]
    except KeyError as error:
        raise AnkaReplyError(f"`anka list` tells no {error} of {json.dumps(entry)[:200]}") from error
    return AnkaVm(str(name), str(uuid), str(status), str(entry.get("version") or ""))


def _failure(what: str, document: dict[str, Any], message: str) -> AnkaError:
    number = document.get("code")
    number = number if isinstance(number, int) else None
    kind: type[AnkaError] = {NOT_FOUND: AnkaNotFoundError, NAME_TAKEN: AnkaNameTakenError}.get(number or 0, AnkaError)
    if kind is AnkaError and message.endswith(": not found"):
        kind = AnkaNotFoundError
    return kind(f"`{what}` failed: {message}", number=number)


def _ended(result: CommandResult) -> str:
    return f"ended with exit code {result.exit_code}" if result.exit_code else "ended well"


def _said(result: CommandResult) -> str:
    said = (result.stderr.strip() or result.stdout.strip()).decode(errors="replace")
    return said[-300:] or "it said nothing"


def runs_as_root() -> bool:
    """Whether `anka` runs as root, whose VMs and logs are apart from those of users."""
    return os.geteuid() == 0
