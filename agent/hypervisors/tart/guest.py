"""Speaking to a guest through the VM's control socket: `tart exec`, which needs no network and no privacy grant."""

from __future__ import annotations

import ipaddress
import re
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from agent.hypervisors.contract import ExecResult, GuestError, HypervisorError
from agent.hypervisors.shell_session import SIGNAL_S, Way
from agent.hypervisors.tart.tool import told_apart
from agent.processes.command import CommandError, CommandTimeoutError

if TYPE_CHECKING:
    from agent.hypervisors.tart.tool import TartTool

SHUTDOWN: Final = "sudo -n shutdown -h now || shutdown -h now"
TOOL_CHECK_S: Final = 3.0
RESOLVERS: Final = ("agent", "dhcp")
"""The guest knows its address best; leases can be stale, but are there without an agent."""
IP_S: Final = 3.5
"""How long one such question may take: Tart gives up by itself after two seconds."""


async def ping(tool: TartTool, name: str, *, timeout_s: float) -> None:
    """Return when the guest's agent runs a command. Raises `GuestError`."""
    await execute(tool, name, ("true",), timeout_s=timeout_s)


async def execute(tool: TartTool, name: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
    """Run a command in the guest. Raises `GuestError` when the guest does not answer, `HypervisorError` otherwise.

    `tart exec` ends with the command's own exit code, or with one of its own, and nobody can tell which. So a shell in
    the guest tells the code as the last line on stderr, behind a word that no command can know.
    """
    word = secrets.token_hex(8)
    script = f'"$@"; printf \'\\n{word} %d\\n\' "$?" >&2'
    try:
        result = await tool.try_run("exec", name, "/bin/sh", "-c", script, "sh", *argv, timeout_s=timeout_s)
    except CommandTimeoutError as error:
        await _prove_tool(tool)
        raise GuestError(f"{name} did not answer within {timeout_s:g} s") from error
    told = re.search(rb"\n%s (\d+)\n\Z" % word.encode(), result.stderr)
    if told is not None:
        return ExecResult(int(told[1]), result.stdout, result.stderr[: told.start()], truncated=result.truncated)
    said = (result.stderr.strip() or result.stdout.strip()).decode(errors="replace")[-300:] or "nothing"
    if known := told_apart(result, f"{name} cannot be asked: {said}"):
        raise known
    if "control socket" in said:
        raise GuestError(f"{name} did not answer: {said}")
    raise HypervisorError(f"`tart exec` on {name} ended with code {result.exit_code} and said: {said}")


def way(tool: TartTool, name: str, *, stdin: bool) -> Way:
    """Return how commands that are followed get into the guest: `tart exec` passes input on only where asked to."""
    argv = (tool.program, "exec", *(("-i",) if stdin else ()), name)
    return Way(name, argv, tool.env, lambda short: execute(tool, name, short, timeout_s=SIGNAL_S))


async def shut_down(tool: TartTool, name: str, *, timeout_s: float) -> bool:
    """Ask the guest to shut down; return whether it may be about to. It may hang up on the question."""
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
        if known := told_apart(result, f"the address of {name} cannot be told"):
            raise known
        with suppress(ValueError):
            return str(ipaddress.ip_address(result.stdout.decode(errors="replace").strip()))
    return None


async def _prove_tool(tool: TartTool) -> None:
    """Ask Tart what no guest can delay: when that hangs too, it is not the guest's fault."""
    await tool.run("--version", timeout_s=TOOL_CHECK_S)
