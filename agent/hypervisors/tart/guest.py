"""Commands in a guest by `tart exec`, through the VM's control socket: needs neither a network nor a privacy grant."""

from __future__ import annotations

import ipaddress
import re
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from agent.hypervisors.captured_command import OUTPUT_LIMIT_BYTES, bounded_result
from agent.hypervisors.contract import GuestError, HypervisorError
from agent.hypervisors.shell_session import SIGNAL_S, GuestTransport
from agent.hypervisors.tart.tool import error_from_stderr
from agent.processes.command import CommandError, CommandTimeoutError

if TYPE_CHECKING:
    from agent.hypervisors.contract import ExecResult
    from agent.hypervisors.tart.tool import TartTool

SHUTDOWN: Final = "sudo -n shutdown -h now || shutdown -h now"
TOOL_CHECK_S: Final = 3.0
RESOLVERS: Final = ("agent", "dhcp")
"""In order of preference: the guest's agent has the current address; a DHCP lease can be stale but needs no agent."""
IP_S: Final = 3.5
"""How long one `tart ip` may take. Tart itself stops after two seconds."""


async def ping(tool: TartTool, name: str, *, timeout_s: float) -> None:
    """Return when the guest's agent runs a command. Raises `GuestError`."""
    await execute(tool, name, ("true",), timeout_s=timeout_s)


async def execute(tool: TartTool, name: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
    """Run a command in the guest. Raises `GuestError` if the guest does not answer, `HypervisorError` otherwise.

    `tart exec` exits with the command's code or with one of its own, and the two cannot be distinguished. So a shell in
    the guest prints the code as the last line on stderr, after a random word that the command cannot know.
    """
    word = secrets.token_hex(8)
    script = f'"$@"; printf \'\\n{word} %d\\n\' "$?" >&2'
    try:
        result = await tool.try_run(
            *("exec", name, "/bin/sh", "-c", script, "sh", *argv),
            timeout_s=timeout_s,
            output_limit_bytes=2 * OUTPUT_LIMIT_BYTES,
        )
    except CommandTimeoutError as error:
        await _check_tool(tool)
        raise GuestError(f"{name} did not answer within {timeout_s:g} s") from error
    marker = re.search(rb"\n%s (\d{1,3})\n\Z" % word.encode(), result.stderr)
    if marker is not None:
        return bounded_result(
            int(marker[1]), result.stdout, result.stderr[: marker.start()], truncated=result.truncated
        )
    output = (result.stderr.strip() or result.stdout.strip()).decode(errors="replace")[-300:] or "no output"
    if known := error_from_stderr(result, f"{name} cannot run commands: {output}"):
        raise known
    if "control socket" in output:
        raise GuestError(f"{name} did not answer: {output}")
    raise HypervisorError(f"`tart exec` on {name} ended with code {result.exit_code}: {output}")


def exec_transport(tool: TartTool, name: str, *, stdin: bool) -> GuestTransport:
    """Return the transport of a command's streams. `tart exec` passes input on only with -i."""
    argv = (tool.program, "exec", *(("-i",) if stdin else ()), name)
    return GuestTransport(name, argv, tool.env, lambda command: execute(tool, name, command, timeout_s=SIGNAL_S))


async def shut_down(tool: TartTool, name: str, *, timeout_s: float) -> bool:
    """Request a shutdown. Returns whether it may have started: the guest may disconnect before it answers."""
    try:
        result = await execute(tool, name, ("/bin/sh", "-c", SHUTDOWN), timeout_s=timeout_s)
    except GuestError as error:
        return not isinstance(error.__cause__, CommandTimeoutError)
    except (HypervisorError, CommandError):
        return False
    return result.exit_code == 0


async def find_ip(tool: TartTool, name: str) -> str | None:
    """Return the guest's address, None while it has none. Raises `HypervisorError` or `CommandError`."""
    for resolver in RESOLVERS:
        result = await tool.try_run("ip", f"--resolver={resolver}", name, timeout_s=IP_S)
        if known := error_from_stderr(result, f"the address of {name} is not known"):
            raise known
        with suppress(ValueError):
            return str(ipaddress.ip_address(result.stdout.decode(errors="replace").strip()))
    return None


async def _check_tool(tool: TartTool) -> None:
    """Run a Tart command that no guest can delay: if it hangs too, raise its `CommandError` instead of a guest's."""
    await tool.run("--version", timeout_s=TOOL_CHECK_S)
