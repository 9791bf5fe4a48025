"""Followed commands: complete output, and no process left after close."""

from __future__ import annotations

import pytest

from agent.processes.command import ProgramMissingError
from agent.processes.followed_command import FollowedCommand
from agent.processes.process import identify
from tests.support.processes import gone


async def test_followed_command_has_separate_complete_streams() -> None:
    script = "echo problem >&2; cat; head -c 300000 /dev/zero"
    command = await FollowedCommand.start(("sh", "-c", script), stdin=True, env={})
    await command.write(b"fed\n")
    command.end_input()
    streams = {"stdout": b"", "stderr": b""}
    async for stream, data in command.output():
        streams[stream] += data
    assert streams == {"stdout": b"fed\n" + bytes(300_000), "stderr": b"problem\n"}
    await command.write(b"this is not read")
    await command.close()


async def test_close_kills_the_process_group() -> None:
    script = "trap '' TERM; sleep 600 & echo $!; wait"
    command = await FollowedCommand.start(("sh", "-c", script), stdin=False, env={})
    _, output = await anext(command.output())
    child = identify(int(output))
    assert child is not None
    await command.close()
    await gone([child])


async def test_start_of_a_missing_program_raises() -> None:
    with pytest.raises(ProgramMissingError, match="no-such-program"):
        await FollowedCommand.start(("no-such-program",), stdin=False, env={})
