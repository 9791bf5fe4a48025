"""Commands that are followed: nothing is lost of what they write, and nothing is left of them."""

from __future__ import annotations

import pytest

from agent.processes.command import ProgramMissingError
from agent.processes.followed_command import FollowedCommand
from agent.processes.process import identify
from tests.support.processes import gone


async def test_streams_come_apart_and_whole_and_input_is_taken() -> None:
    script = "echo problem >&2; cat; head -c 300000 /dev/zero"
    command = await FollowedCommand.start(("sh", "-c", script), stdin=True, env={})
    await command.write(b"fed\n")
    command.end_input()
    streams = {"stdout": b"", "stderr": b""}
    async for stream, data in command.output():
        streams[stream] += data
    assert streams == {"stdout": b"fed\n" + bytes(300_000), "stderr": b"problem\n"}
    await command.write(b"nobody reads this")
    await command.close()


async def test_its_whole_group_ends_with_it() -> None:
    script = "trap '' TERM; sleep 600 & echo $!; wait"
    command = await FollowedCommand.start(("sh", "-c", script), stdin=False, env={})
    _, said = await anext(command.output())
    child = identify(int(said))
    assert child is not None
    await command.close()
    await gone([child])


async def test_a_missing_program_is_told() -> None:
    with pytest.raises(ProgramMissingError, match="no-such-program"):
        await FollowedCommand.start(("no-such-program",), stdin=False, env={})
