"""Report of a self-test: as text for people, and as JSON with every call."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from agent.processes.command import Command, CommandError, CommandRunner

if TYPE_CHECKING:
    from collections.abc import Mapping

KEEP_BYTES = 4000


@dataclass(frozen=True)
class Call:
    """One command that was run. `exit_code` is None when the command timed out or could not be started."""

    argv: tuple[str, ...]
    exit_code: int | None
    stdout: str
    stderr: str
    seconds: float
    first_output_s: float | None = None  # until its first output

    @property
    def last(self) -> dict[str, Any]:
        """Return the last line of stdout as a JSON object; empty when it is not one."""
        lines = [line for line in self.stdout.splitlines() if line.strip()]
        try:
            document = json.loads(lines[-1]) if lines else {}
        except ValueError:
            return {}
        return document if isinstance(document, dict) else {}

    @property
    def body(self) -> Any:  # noqa: ANN401 - any JSON value
        """Return the `body` of that object."""
        return self.last.get("body")


@dataclass
class Finding:
    """One question with its answer. `expected` is None when the drivers do not depend on the answer."""

    number: str
    question: str
    answer: str = "not answered"
    expected: bool | None = None
    calls: list[Call] = field(default_factory=list)


class Report:
    """All findings of one run."""

    def __init__(self, tool: str) -> None:
        self.tool = tool
        self.findings: list[Finding] = []
        self._runner = CommandRunner()

    def begin(self, number: str, question: str) -> Finding:
        """Begin a question. The following calls belong to it."""
        self.findings.append(Finding(number, question))
        return self.findings[-1]

    async def call(
        self, *argv: str, timeout_s: float = 60, env: Mapping[str, str] | None = None, stdin: bytes = b""
    ) -> Call:
        """Run a command for the latest question. A failure is recorded, not raised."""
        code: int | None
        began_s = time.monotonic()
        came_s: list[float] = []

        def spent_s() -> float:
            return round(time.monotonic() - began_s, 3)

        command = Command(argv, timeout_s, stdin=stdin, env=env)
        try:
            result = await self._runner.run(command, check=False, on_output=lambda _: came_s.append(spent_s()))
            code, stdout, stderr = result.exit_code, _text(result.stdout), _text(result.stderr)
        except CommandError as error:
            code, stdout, stderr = None, "", str(error)
        made = Call(argv, code, stdout, stderr, spent_s(), came_s[0] if came_s else None)
        self.findings[-1].calls.append(made)
        return made

    @property
    def as_expected(self) -> bool:
        """Return whether no answer contradicts what the drivers expect."""
        return all(finding.expected is not False for finding in self.findings)

    def to_json(self) -> str:
        """Return the whole report as JSON."""
        host = {"system": platform.platform(), "machine": platform.machine(), "mac_os": platform.mac_ver()[0]}
        found = [asdict(finding) for finding in self.findings]
        return json.dumps({"tool": self.tool, "host": host, "at": time.time(), "findings": found}, indent=1)

    def to_text(self) -> str:
        """Return the answers as text."""
        marks = {True: "as expected", False: "NOT EXPECTED", None: "for the record"}
        lines = [f"{one.number}: {one.question}\n  {one.answer} [{marks[one.expected]}]" for one in self.findings]
        return "\n".join(lines)


def _text(output: bytes) -> str:
    return output[-KEEP_BYTES:].decode(errors="replace")
