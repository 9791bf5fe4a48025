"""The guest agent's client against agents that are slow, late, silent or broken, or have ended."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.hypervisors.captured_command import OUTPUT_LIMIT_BYTES
from agent.hypervisors.contract import ExecResult, GuestError
from agent.hypervisors.qemu.agent_messages import RESET, Decoder
from agent.hypervisors.qemu.guest_agent import GuestAgent
from agent.hypervisors.qemu.reinitialize import set_clock
from agent.hypervisors.qemu.running import QemuRunningVm
from agent.hypervisors.qemu.sockets import listen
from agent.processes.process import ProcessIdentity
from tests.support.scripted_agent import Request, ScriptedAgent, connected_to

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.scripted_agent import Script


async def obedient(request: Request, agent: ScriptedAgent) -> None:
    agent.send({"return": {}})


async def silent(_request: Request, _agent: ScriptedAgent) -> None:
    pass


async def test_pings_share_one_connection(tmp_path: Path) -> None:
    async with connected_to(obedient, tmp_path) as (client, agent):
        for _ in range(3):
            await client.ping(timeout_s=5)
        assert agent.connections == 1
        assert [request["execute"] for request in agent.requests] == ["guest-ping"] * 3


async def test_connection_made_before_the_guest_runs_is_used(tmp_path: Path) -> None:
    async with connected_to(obedient, tmp_path) as (client, agent):
        await client.connect()
        await client.ping(timeout_s=5)
        assert agent.connections == 1


async def test_ping_of_a_silent_agent_ends_at_its_timeout(tmp_path: Path) -> None:
    async with connected_to(silent, tmp_path) as (client, _):
        started_s = time.monotonic()
        with pytest.raises(GuestError, match=r"agent of vm-1 did not answer a ping in 0\.2 s"):
            await client.ping(timeout_s=0.2)
        assert 0.2 <= time.monotonic() - started_s < 1


async def test_late_reply_does_not_answer_the_next_call(tmp_path: Path) -> None:
    """The agent answers each request only after the next request, on the connection that is open then."""
    pending: list[object] = []

    async def late_by_one(request: Request, agent: ScriptedAgent) -> None:
        for answer in pending:
            agent.send(answer)
        pending.append({"return": {"pid": len(pending)}})

    async with connected_to(late_by_one, tmp_path) as (client, agent):
        for _ in range(2):
            with pytest.raises(GuestError, match="did not answer"):
                await client.ping(timeout_s=0.1)
            pending.clear()
        assert agent.connections == 2, "a connection with a pending reply is dropped"


async def test_dead_connection_is_replaced(tmp_path: Path) -> None:
    class Silent(ScriptedAgent):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self.connections == 0:
                self.connections += 1
                await reader.read()
                writer.close()
            else:
                await super().serve(reader, writer)

    path = tmp_path / "agent.sock"
    agent = Silent(obedient)
    server = await asyncio.start_unix_server(agent.serve, sock=listen(path))
    client = GuestAgent("vm-1", path)
    async with server:
        await client.ping(timeout_s=10)
        await client.ping(timeout_s=10)
        client.close()
        await asyncio.sleep(0)
    assert (agent.connections, len(agent.requests)) == (2, 2)


async def test_replies_to_an_earlier_client_are_skipped(tmp_path: Path) -> None:
    async def script(request: Request, agent: ScriptedAgent) -> None:
        agent.send({"return": {"exited": True, "exitcode": 0}} if "status" in str(request) else {"return": {"pid": 9}})

    class Noisy(ScriptedAgent):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b'lf a reply"}\n{"return": 1}\n{"return": {"exited": true, "exitcode": 77}}\n{"ret')
            await super().serve(reader, writer)

    path = tmp_path / "agent.sock"
    server = await asyncio.start_unix_server(Noisy(script).serve, sock=listen(path))
    client = GuestAgent("vm-1", path)
    async with server:
        assert (await client.execute(("true",), timeout_s=5)).exit_code == 0
        client.close()
        await asyncio.sleep(0)


async def test_client_reconnects_after_a_disconnect(tmp_path: Path) -> None:
    async def once(request: Request, agent: ScriptedAgent) -> None:
        agent.send({"return": {}})
        agent.disconnect()

    async with connected_to(once, tmp_path) as (client, agent):
        await client.ping(timeout_s=5)
        while agent.connections < 2:
            with suppress(GuestError):  # a call may be the first to notice the disconnect
                await client.ping(timeout_s=5)


async def test_disconnect_instead_of_a_reply_raises_guest_error(tmp_path: Path) -> None:
    async def disconnecting(_request: Request, agent: ScriptedAgent) -> None:
        agent.disconnect()

    async with connected_to(disconnecting, tmp_path) as (client, _):
        with pytest.raises(GuestError, match="cannot be reached"):
            await client.ping(timeout_s=5)


async def test_missing_socket_or_listener_raises_guest_error(tmp_path: Path) -> None:
    client = GuestAgent("vm-1", tmp_path / "agent.sock")
    with pytest.raises(GuestError, match="cannot be reached"):
        await client.ping(timeout_s=5)
    listen(tmp_path / "agent.sock").close()
    with pytest.raises(GuestError, match="cannot be reached"):
        await client.ping(timeout_s=5)


async def test_ping_ends_in_time_when_the_backlog_is_full(tmp_path: Path) -> None:
    with listen(tmp_path / "agent.sock"):
        client = GuestAgent("vm-1", tmp_path / "agent.sock")
        for _ in range(40):  # more than its backlog holds
            with pytest.raises(GuestError):
                await client.ping(timeout_s=0.01)


async def test_refusal_contains_the_message_of_the_guest(tmp_path: Path) -> None:
    async def refuse(_request: Request, agent: ScriptedAgent) -> None:
        agent.send({"error": {"class": "GenericError", "desc": "no such file"}})

    async with connected_to(refuse, tmp_path) as (client, _):
        with pytest.raises(GuestError, match="refused guest-exec: no such file"):
            await client.execute(("nothing",), timeout_s=5)


@pytest.mark.parametrize("answer", [{"return": {}}, {"return": {"pid": 1, "exited": True}}, {"unexpected": 1}])
async def test_invalid_reply_raises_guest_error(answer: object, tmp_path: Path) -> None:
    async def script(_request: Request, agent: ScriptedAgent) -> None:
        agent.send(answer)

    async with connected_to(script, tmp_path) as (client, _):
        with pytest.raises(GuestError, match="invalid answer"):
            await client.execute(("true",), timeout_s=5)


async def test_concurrent_calls_run_one_at_a_time(tmp_path: Path) -> None:
    asked = 0

    async def one_at_a_time(_request: Request, agent: ScriptedAgent) -> None:
        nonlocal asked
        asked += 1
        number = asked
        await asyncio.sleep(0.01)
        assert asked == number, "a request came before the previous reply"
        agent.send({"return": {}})

    async with connected_to(one_at_a_time, tmp_path) as (client, agent):
        await asyncio.gather(*(client.ping(timeout_s=5) for _ in range(10)))
        assert agent.connections == 1


async def test_call_succeeds_after_a_cancelled_call(tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def slow_first(_request: Request, agent: ScriptedAgent) -> None:
        asked.set()
        await asyncio.sleep(0.1 if len(agent.requests) == 1 else 0)
        agent.send({"return": {}})

    async with connected_to(slow_first, tmp_path) as (client, agent):
        cancelled_call = asyncio.create_task(client.ping(timeout_s=5))
        await asked.wait()
        cancelled_call.cancel()
        await asyncio.wait([cancelled_call])
        assert cancelled_call.cancelled()
        await client.ping(timeout_s=5)
        assert agent.connections == 2


def exec_script(status: dict[str, object], *, polls: int = 1) -> Script:
    """Return a script of a guest in which every command runs for `polls` status requests."""
    asked = 0

    async def script(request: Request, agent: ScriptedAgent) -> None:
        nonlocal asked
        if request["execute"] == "guest-exec":
            agent.send({"return": {"pid": 4}})
            return
        assert request["arguments"] == {"pid": 4}
        asked += 1
        agent.send({"return": status if asked >= polls else {"exited": False}})

    return script


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def test_execute_returns_output_and_exit_code(tmp_path: Path) -> None:
    status = {"exited": True, "exitcode": 3, "out-data": encoded(b"out"), "err-data": encoded(b"err")}
    async with connected_to(exec_script(status, polls=3), tmp_path) as (client, agent):
        assert await client.execute(("sh", "-c", "x"), timeout_s=5) == ExecResult(3, b"out", b"err")
        assert agent.requests[0]["arguments"] == {"path": "sh", "arg": ["-c", "x"], "capture-output": True}
        assert len(agent.requests) == 4


async def test_killed_command_has_the_exit_code_of_a_shell(tmp_path: Path) -> None:
    async with connected_to(exec_script({"exited": True, "signal": 9}), tmp_path) as (client, _):
        assert (await client.execute(("x",), timeout_s=5)).exit_code == 137


async def test_execute_truncates_large_output(tmp_path: Path) -> None:
    flood = random.Random(1).randbytes(OUTPUT_LIMIT_BYTES + 1)
    status = {"exited": True, "exitcode": 0, "out-data": encoded(flood)}
    async with connected_to(exec_script(status), tmp_path) as (client, _):
        result = await client.execute(("x",), timeout_s=20)
        assert result.truncated
        assert result.stdout == flood[:OUTPUT_LIMIT_BYTES]
    status = {"exited": True, "exitcode": 0, "out-data": encoded(b"cut"), "out-truncated": True}
    async with connected_to(exec_script(status), tmp_path) as (client, _):
        assert (await client.execute(("x",), timeout_s=5)).truncated


async def test_execute_raises_when_the_command_does_not_end(tmp_path: Path) -> None:
    async with connected_to(exec_script({"exited": False}), tmp_path) as (client, _):
        with pytest.raises(GuestError, match=r"did not answer `sleep` in 0\.2 s"):
            await client.execute(("sleep", "99"), timeout_s=0.2)


async def test_unanswered_shutdown_request_is_accepted(tmp_path: Path) -> None:
    async def script(request: Request, agent: ScriptedAgent) -> None:
        if request["execute"] == "guest-ping":
            agent.send({"return": {}})

    async with connected_to(script, tmp_path) as (client, agent):
        await client.shut_down(timeout_s=5)
        assert agent.requests[-1] == {"execute": "guest-shutdown", "arguments": {"mode": "powerdown"}}


async def test_shutdown_is_accepted_when_the_guest_disconnects(tmp_path: Path) -> None:
    async def script(request: Request, agent: ScriptedAgent) -> None:
        agent.send({"return": {}}) if request["execute"] == "guest-ping" else agent.disconnect()

    async with connected_to(script, tmp_path) as (client, _):
        await client.shut_down(timeout_s=5)


async def test_shutdown_request_fails_when_the_guest_hangs(tmp_path: Path) -> None:
    async with connected_to(silent, tmp_path) as (client, _):
        with pytest.raises(GuestError, match="did not answer a shutdown request"):
            await client.shut_down(timeout_s=0.2)


JSON_OBJECTS = st.dictionaries(st.text(), st.text() | st.integers() | st.none() | st.booleans(), max_size=3)


@given(
    st.binary(max_size=40),
    st.lists(JSON_OBJECTS.filter(bool), max_size=5),
    st.lists(st.integers(1, 30), max_size=40),
)
def test_decoder_returns_exact_messages_for_any_split(
    noise: bytes, messages: list[dict[str, object]], cuts: list[int]
) -> None:
    """Messages after 0xFF are decoded exactly, for any bytes before it and any split of the stream."""
    stream = RESET + b"".join(json.dumps(message).encode() + b"\n" for message in messages)
    noise = noise.replace(b"\n", b" ")
    rest, decoded, decoder = noise + stream, [], Decoder()
    for cut in cuts:
        decoded += decoder.feed(rest[:cut])
        rest = rest[cut:]
    assert decoded + decoder.feed(rest) == messages


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_decoder_ignores_noise(pieces: list[bytes]) -> None:
    decoder = Decoder()
    for piece in pieces:
        for message in decoder.feed(piece):
            assert isinstance(message, dict)


def test_decoder_raises_for_a_line_over_its_limit() -> None:
    decoder = Decoder(limit_bytes=100)
    decoder.feed(b"x" * 100)
    with pytest.raises(GuestError, match="over 100 bytes"):
        decoder.feed(b"x")


async def test_execute_passes_input(tmp_path: Path) -> None:
    async def script(request: Request, agent: ScriptedAgent) -> None:
        agent.send({"return": {"exited": True, "exitcode": 0}} if "status" in str(request) else {"return": {"pid": 9}})

    async with connected_to(script, tmp_path) as (client, agent):
        await client.execute(("cat",), timeout_s=5, stdin=b"\0seed")
        await client.execute(("cat",), timeout_s=5)
    inputs = [request["arguments"].get("input-data") for request in agent.requests[::2]]  # type: ignore[attr-defined]
    assert inputs == [base64.b64encode(b"\0seed").decode(), None]


async def test_clock_is_set_also_without_a_hardware_clock(tmp_path: Path) -> None:
    async def without(request: Request, agent: ScriptedAgent) -> None:
        replies: dict[object, object] = {
            "guest-set-time": {"error": {"class": "GenericError", "desc": "this feature is not supported"}},
            "guest-exec": {"return": {"pid": 9}},
            "guest-exec-status": {"return": {"exited": True, "exitcode": 0}},
        }
        agent.send(replies[request["execute"]])

    for script, commands in ((obedient, ["guest-set-time"]), (without, ["guest-set-time", "guest-exec"])):
        async with connected_to(script, tmp_path) as (client, agent):
            await set_clock(QemuRunningVm("vm-1", ProcessIdentity(1, 1), tmp_path, client))
        assert [request["execute"] for request in agent.requests][:2] == commands
        arguments = agent.requests[-1 if script is obedient else 1]["arguments"]
        assert isinstance(arguments, dict)
        sent_s = arguments["time"] / 1e9 if script is obedient else float(arguments["arg"][1].removeprefix("@"))
        assert sent_s == pytest.approx(time.time(), abs=2)
