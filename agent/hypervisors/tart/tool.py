"""Running `tart`: always with its home and without its auto-prune, always bounded, its errors told by their text.

Exit codes alone do not tell: a missing VM is 2 or 1 depending on the command, and `tart exec` passes on any code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.hypervisors.contract import HypervisorError, VmNotFoundError, VmNotRunningError
from agent.processes.command import Command, CommandFailedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.config import TartConfig
    from agent.processes.command import CommandResult, CommandRunner

REMEDY: Final = "install it with `brew install cirruslabs/cli/tart`, or set hypervisor.tart.program to its path"
_BY_TEXT: Final[tuple[tuple[str, type[HypervisorError]], ...]] = (
    ("does not exist", VmNotFoundError),
    ("is not running", VmNotRunningError),
)


class TartTool:
    """Runs commands of Tart's on one home."""

    def __init__(self, config: TartConfig, runner: CommandRunner) -> None:
        self._config = config
        self._runner = runner

    @property
    def program(self) -> str:
        """Name or path of `tart`."""
        return self._config.program

    @property
    def env(self) -> Mapping[str, str]:
        """What every process of Tart's gets. Without the second it deletes images when it finds the disk too full."""
        return {"TART_HOME": str(self._config.home_path), "TART_NO_AUTO_PRUNE": "1"}

    async def run(self, *arguments: str, timeout_s: float | None = None) -> CommandResult:
        """Run a command to its end. Raises `VmNotFoundError`, `VmNotRunningError`, and `CommandError` for the rest."""
        try:
            return await self.try_run(*arguments, timeout_s=timeout_s, check=True)
        except CommandFailedError as error:
            raise told_apart(error.result, str(error)) or error from error

    async def try_run(self, *arguments: str, timeout_s: float | None = None, check: bool = False) -> CommandResult:
        """Run a command and return how it ended, whatever its exit code. Raises `CommandError` when it does not end."""
        command = Command(
            (self.program, *arguments),
            timeout_s=self._config.command_timeout_s if timeout_s is None else timeout_s,
            env=self.env,
            remedy=REMEDY,
        )
        return await self._runner.run(command, check=check)


def told_apart(result: CommandResult, message: str) -> HypervisorError | None:
    """Return the error that Tart's own words on stderr mean; None for words that only a person can judge."""
    said = result.stderr.decode(errors="replace")
    return next((kind(message) for text, kind in _BY_TEXT if text in said), None)
