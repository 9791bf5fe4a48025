"""The program `tart`: runs its commands in one home, bounded in time, and recognises its errors by their text.

Exit codes do not suffice: a missing VM is 2 or 1 depending on the command, and `tart exec` passes on any code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.hypervisors.contract import HypervisorError, VmNotFoundError, VmNotRunningError
from agent.processes.command import OUTPUT_LIMIT_BYTES, Command, CommandFailedError

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
    """Runs Tart's commands in one home."""

    def __init__(self, config: TartConfig, runner: CommandRunner) -> None:
        self._config = config
        self._runner = runner

    @property
    def program(self) -> str:
        """Name or path of `tart`."""
        return self._config.program

    @property
    def env(self) -> Mapping[str, str]:
        """Environment of every Tart process. Without TART_NO_AUTO_PRUNE, Tart deletes images when the disk is full."""
        return {"TART_HOME": str(self._config.home_path), "TART_NO_AUTO_PRUNE": "1"}

    async def run(self, *arguments: str, timeout_s: float | None = None) -> CommandResult:
        """Run a command to its end. Raises `VmNotFoundError`, `VmNotRunningError`, and `CommandError` for the rest."""
        try:
            return await self.try_run(*arguments, timeout_s=timeout_s, check=True)
        except CommandFailedError as error:
            raise error_from_stderr(error.result, str(error)) or error from error

    async def try_run(
        self,
        *arguments: str,
        timeout_s: float | None = None,
        check: bool = False,
        output_limit_bytes: int = OUTPUT_LIMIT_BYTES,
    ) -> CommandResult:
        """Run a command and return its result, whatever its exit code. Raises `CommandError` if it does not end."""
        command = Command(
            (self.program, *arguments),
            timeout_s=self._config.command_timeout_s if timeout_s is None else timeout_s,
            env=self.env,
            remedy=REMEDY,
            output_limit_bytes=output_limit_bytes,
        )
        return await self._runner.run(command, check=check)


def error_from_stderr(result: CommandResult, message: str) -> HypervisorError | None:
    """Return the error that Tart's stderr stands for, with `message`; None if the text is not a known one."""
    stderr = result.stderr.decode(errors="replace")
    return next((kind(message) for text, kind in _BY_TEXT if text in stderr), None)
