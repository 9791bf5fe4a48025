"""Exec sessions over a tool that merges and reorders streams. A shell on this machine acts as tool and guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent.hypervisors.contract import GuestError
from agent.hypervisors.shell_session import GuestTransport, ShellExecSession

if TYPE_CHECKING:
    from pathlib import Path

STDERR_LAST = '"$@" 2>"$ASIDE"; cat "$ASIDE" >&2'
MESSAGE_FIRST = 'echo "INFO tool: run" >&2; exec "$@"'


def transport(script: str, aside: Path) -> GuestTransport:
    async def run(argv: tuple[str, ...]) -> None:
        """Send no signal: the commands of these tests end by themselves."""

    return GuestTransport("vm", ("/bin/sh", "-c", script, "sh"), {"ASIDE": str(aside)}, run)


@pytest.mark.parametrize("script", [STDERR_LAST, MESSAGE_FIRST])
async def test_shell_session_separates_output_from_reports(script: str, tmp_path: Path) -> None:
    argv = ("sh", "-c", "echo hello; echo problem >&2; exit 3")
    session = await ShellExecSession.open(transport(script, tmp_path / "stderr"), argv, stdin=False)
    streams = {"stdout": b"", "stderr": b""}
    async for item in session.output():
        streams[item.stream] += item.data
    assert (streams, session.exit_code) == ({"stdout": b"hello\n", "stderr": b"problem\n"}, 3)
    await session.close()


async def test_shell_session_raises_the_message_of_the_tool(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="vm did not answer: -tool: disconnected"):
        await ShellExecSession.open(
            transport("echo '-tool: disconnected' >&2; exit 125", tmp_path), ("true",), stdin=False
        )
    with pytest.raises(GuestError, match="vm did not answer: .* ended without a message"):
        await ShellExecSession.open(transport("exit 1", tmp_path), ("true",), stdin=False)
