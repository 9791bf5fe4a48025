"""The commands against an API server: their output and exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.cli.documents import VmList
from agent.cli.exit_codes import EXIT_BY_CODE, ExitCode
from agent.cli.main import COMMANDS, run
from agent.domain.events import Event, EventKind
from agent.domain.model import Cause
from agent.domain.states import VmState
from tests.api.real_engine import NOW_S
from tests.cli.conftest import Agent, Ended, start

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.api.real_engine import RealEngine

    Hearth = Callable[..., Ended]


def test_status_fits_80_columns(agent: Agent, hearth: Hearth) -> None:
    ended = hearth("status", "--socket", agent.socket)
    assert ended.code == ExitCode.OK
    assert max(map(len, ended.out.splitlines())) <= 80
    assert "\x1b" not in ended.out
    for text in ("mac-1", "qemu 7.2", "0 of 2 free (1 ready, 1 starting)", "hearth-small-1", "starting", "serving"):
        assert text in ended.out


def test_status_json_is_the_host_document(agent: Agent, hearth: Hearth) -> None:
    document = json.loads(hearth("status", "--json", "--socket", agent.socket).out)
    assert document["slots"]["total"] == 2
    assert [pool["name"] for pool in document["pools"]] == ["small"]


def test_vms_lists_all_vms(agent: Agent, hearth: Hearth) -> None:
    assert "hearth-small-2" in hearth("vms", "--socket", agent.socket).out
    listed = json.loads(hearth("vms", "--json", "--socket", agent.socket).out)["vms"]
    assert [item["name"] for item in listed] == ["hearth-small-1", "hearth-small-2"]


def test_vm_is_replaced_with_reason(agent: Agent, hearth: Hearth) -> None:
    ended = hearth("vms", "--socket", agent.socket, "replace", "hearth-small-1", "--reason", "odd noises")
    assert ended == Ended(ExitCode.OK, "hearth-small-1 is being replaced\n", "")
    failure = agent.engine.vms["hearth-small-1"].failure
    assert failure is not None
    assert (failure.cause, failure.reason) == (Cause.REQUESTED, "odd noises")


def test_lease_is_claimed_renewed_and_released(agent: Agent, hearth: Hearth) -> None:
    endpoint = ("--socket", agent.socket)
    claimed = hearth("lease", "small", "--ttl", "15m", "--holder", "job-1", *endpoint)
    assert claimed.code == ExitCode.OK
    (lease,) = agent.engine.leases
    for part in (lease, "hearth-small-1", "22 at 127.0.0.1:40022", f"hearth release {lease}"):
        assert part in claimed.out
    renewed = json.loads(hearth("renew", lease, "--ttl", "2h", "--json", *endpoint).out)
    assert (renewed["holder"], renewed["ttl_s"]) == ("job-1", 7200)
    assert hearth("release", lease, *endpoint) == Ended(ExitCode.OK, f"{lease} is released\n", "")
    assert agent.engine.vms["hearth-small-1"].state is VmState.STOPPING


def test_lease_has_default_holder(agent: Agent, hearth: Hearth) -> None:
    lease = json.loads(hearth("lease", "small", "--json", "--socket", agent.socket).out)
    assert "@" in lease["holder"]


def test_lease_request_is_cancelled_by_ctrl_c(agent: Agent) -> None:
    async def wait_for_request(engine: RealEngine) -> None:
        await engine.wait_for_request()

    async def wait_for_cancellation(engine: RealEngine) -> int:
        async with asyncio.timeout(5):
            await engine.request_refused.wait()
        return len(engine.parts.view.queue.requests)

    async def make_vm_unavailable(engine: RealEngine) -> None:
        await engine.move_vm("hearth-small-1", VmState.STOPPING)

    agent.call(make_vm_unavailable)
    process = start("lease", "small", "--wait", "10m", "--socket", agent.socket)
    agent.call(wait_for_request)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (ExitCode.INTERRUPTED, "", "")
    assert agent.call(wait_for_cancellation) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["lease", "other"], ExitCode.NOT_FOUND, "there is no pool 'other'"),
        (["release", "gone"], ExitCode.NOT_FOUND, "there is no lease 'gone'"),
        (["renew", "gone"], ExitCode.NOT_FOUND, "request a new lease"),
        (["vms", "replace", "hearth-small-9"], ExitCode.NOT_FOUND, "hearth-small-9"),
        (["lease", "small", "--wait", "soon"], ExitCode.USAGE, "is not a duration"),
        (["lease"], ExitCode.USAGE, "Missing argument"),
        (["lese", "small"], ExitCode.USAGE, "Did you mean 'lease'"),
        (["status", "--colour"], ExitCode.USAGE, "No such option"),
    ],
)
def test_error_is_on_stderr_with_its_exit_code(
    agent: Agent, hearth: Hearth, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: ExitCode, message: str
) -> None:
    monkeypatch.setenv("HEARTH_SOCKET", str(agent.socket))
    ended = hearth(*arguments)
    assert ended.code == code
    assert ended.out == ""
    assert message in ended.err


def test_no_vm_free_and_refused_have_different_exit_codes(agent: Agent, hearth: Hearth) -> None:
    endpoint = ("--socket", agent.socket)
    assert hearth("lease", "small", *endpoint).code == ExitCode.OK
    assert hearth("lease", "small", *endpoint).code == ExitCode.NO_VM_FREE
    refused = hearth("vms", *endpoint, "replace", "hearth-small-1")
    assert refused.code == ExitCode.REFUSED
    assert "release that lease instead" in refused.err


def test_unreachable_agent_error_names_socket_and_remedy(tmp_path: Path, hearth: Hearth) -> None:
    ended = hearth("status", "--socket", tmp_path / "none.sock")
    assert ended.code == ExitCode.UNREACHABLE
    assert f"the agent does not answer on {tmp_path / 'none.sock'}" in ended.err
    assert "hearth run" in ended.err


def complete(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    monkeypatch.setenv("_HEARTH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    with pytest.raises(SystemExit):
        run([])
    return capsys.readouterr().out.split()


def test_shell_completes_commands_options_and_agent_names(
    agent: Agent, hearth: Hearth, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEARTH_SOCKET", str(agent.socket))
    lease = json.loads(hearth("lease", "small", "--json").out)
    assert complete(monkeypatch, capsys, "hearth", "unc") == ["uncordon"]
    assert complete(monkeypatch, capsys, "hearth", "vms", "re") == ["replace"]
    assert "--level" in complete(monkeypatch, capsys, "hearth", "logs", "--le")
    assert complete(monkeypatch, capsys, "hearth", "exec", "sm") == ["small"]
    assert complete(monkeypatch, capsys, "hearth", "vms", "why", "hearth-small-2") == ["hearth-small-2"]
    assert complete(monkeypatch, capsys, "hearth", "release", "") == [lease["id"]]
    monkeypatch.setenv("HEARTH_SOCKET", "/nowhere")
    assert complete(monkeypatch, capsys, "hearth", "exec", "sm") == []


def test_command_help_has_example(hearth: Hearth) -> None:
    without = []
    for name in COMMANDS:
        page = hearth(name, "--help").out
        inner = re.findall(r"^[│ ] (\w\S*) ", page.partition("Commands")[2], flags=re.MULTILINE)
        pages = [page, *(hearth(name, command, "--help").out for command in inner)]
        if not any(f"hearth {name}" in page.partition("Usage:")[2].partition("\n")[2] for page in pages):
            without.append(name)
    assert without == []


def test_vm_is_shown_with_ports_and_probes(agent: Agent, hearth: Hearth) -> None:
    shown = hearth("vms", "show", "small-1", "--socket", agent.socket).out
    assert "22 at 127.0.0.1:40022" in shown
    assert "answered" in shown
    assert json.loads(hearth("vms", "show", "small-1", "--socket", agent.socket, "--json").out)["state"] == "ready"
    assert hearth("vms", "show", "small-9", "--socket", agent.socket).code == ExitCode.NOT_FOUND


def test_image_list_comes_from_the_agent(agent: Agent, hearth: Hearth) -> None:
    assert "aaaaaaaaaaaa" in hearth("image", "list", "--socket", agent.socket).out
    document = json.loads(hearth("image", "list", "--socket", agent.socket, "--json").out)
    assert (document["source"], len(document["images"])) == ("agent", 1)


def test_image_list_comes_from_the_store_without_agent(tmp_path: Path, hearth: Hearth) -> None:
    config = tmp_path / "hearth.toml"
    config.write_text('data_dir = "data"\n')
    ended = hearth("image", "list", "--json", "--config", config)
    assert json.loads(ended.out) == {"source": "store", "images": []}
    assert "these are the images in the local store" in ended.err


def test_image_list_of_remote_host_does_not_use_the_store(hearth: Hearth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEARTH_HOST", "http://127.0.0.1:1")
    ended = hearth("image", "list")
    assert (ended.code, ended.out) == (ExitCode.UNREACHABLE, "")


def test_answer_without_a_needed_key_is_an_error(agent: Agent, hearth: Hearth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VmList, "__required_keys__", frozenset({"vms", "new_key"}))
    ended = hearth("vms", "--socket", agent.socket)
    assert ended.code == ExitCode.FAILURE
    assert "the agent's answer lacks new_key" in ended.err


def test_top_shows_usage(agent: Agent, hearth: Hearth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.cli.top.FIRST_S", 0.0)
    document = json.loads(hearth("top", "--json", "--socket", agent.socket).out)
    assert [vm["name"] for vm in document["vms"]] == ["hearth-small-1", "hearth-small-2"]
    assert document["host"]["memory_total_bytes"] > 0
    assert "hearth-small-1" in hearth("top", "--once", "--socket", agent.socket).out


def test_socket_comes_from_configuration(agent: Agent, hearth: Hearth, tmp_path: Path) -> None:
    config = tmp_path / "hearth.toml"
    config.write_text('data_dir = "."\n')
    assert hearth("vms", "--config", config).code == ExitCode.OK


def test_assignment_is_shown_edited_and_set(agent: Agent, hearth: Hearth, tmp_path: Path) -> None:
    endpoint = ("--socket", agent.socket)
    document = json.loads(hearth("assignment", "show", *endpoint).out)
    document["pools"]["big"] = {"image": "registry/big:v1"}
    edited = tmp_path / "pools.json"
    edited.write_text(json.dumps(document))
    assert hearth("assignment", "set", edited, *endpoint) == Ended(ExitCode.OK, "assigned: big, small\n", "")
    toml = tmp_path / "pools.toml"
    toml.write_text('[pools.tiny]\nimage = "registry/tiny:v1"\n')
    assert hearth("assignment", "set", toml, *endpoint).out == "assigned: tiny\n"
    stale = hearth("assignment", "set", toml, "--if-match", "old", *endpoint)
    assert (stale.code, stale.out) == (ExitCode.REFUSED, "")


def test_invalid_assignment_is_not_sent(agent: Agent, hearth: Hearth, tmp_path: Path) -> None:
    bad = tmp_path / "pools.toml"
    bad.write_text("[pools.tiny]\nwarm = 1\n")
    ended = hearth("assignment", "set", bad, "--socket", agent.socket)
    assert ended.code == ExitCode.BAD_CONFIGURATION
    assert "pools.tiny.image" in ended.err


@pytest.mark.parametrize(
    ("config", "assignment", "code", "message"),
    [
        ("[host]\nslots = 2\n", '[pools.a]\nimage = "x"\n', ExitCode.OK, "is valid"),
        ('[assignment]\nsource = "api"\n', None, ExitCode.OK, "is valid"),
        ("[host\n", None, ExitCode.BAD_CONFIGURATION, "line 1"),
        ("[host]\nslotz = 2\n", None, ExitCode.BAD_CONFIGURATION, "host.slotz: unknown key"),
        ("[host]\nslots = true\n", None, ExitCode.BAD_CONFIGURATION, "host.slots"),
        ('[host]\nslots = "2"\n', None, ExitCode.BAD_CONFIGURATION, "host.slots"),
        ("data_dir = 2026-01-01\nhost = 1\n", None, ExitCode.BAD_CONFIGURATION, "host"),
        ("[host]\nslots = 0\n", None, ExitCode.BAD_CONFIGURATION, "host.slots"),
        ("[host]\ndoctor_period_s = 5e-324\n", None, ExitCode.BAD_CONFIGURATION, "host.doctor_period_s"),
        ("", None, ExitCode.BAD_CONFIGURATION, "assignment.toml does not exist"),
        ("", '[pools.a]\nimage = "x"\nwarm = 2\nmax = 1\n', ExitCode.BAD_CONFIGURATION, "raise max or lower warm"),
    ],
)
def test_config_check(
    hearth: Hearth, tmp_path: Path, config: str, assignment: str | None, code: ExitCode, message: str
) -> None:
    path = tmp_path / "hearth.toml"
    path.write_text(config)
    if assignment is not None:
        (tmp_path / "assignment.toml").write_text(assignment)
    ended = hearth("config", "check", "--config", path)
    assert ended.code == code
    assert message in ended.out + ended.err
    as_json = hearth("config", "check", "--config", path, "--json")
    assert as_json.code == code
    assert json.loads(as_json.out)["ok"] is (code is ExitCode.OK)


def test_process_ends_with_exit_code(tmp_path: Path) -> None:
    process = start("config", "check", "--config", tmp_path / "none.toml")
    _, err = process.communicate(timeout=20)
    assert process.returncode == ExitCode.BAD_CONFIGURATION
    assert "none.toml does not exist" in err


def test_help_imports_no_slow_module() -> None:
    program = (
        "import sys; from agent.cli.main import run; code = run(['--help']);"
        "print([m for m in ('aiohttp', 'agent.config', 'agent.cli.image', 'structlog') if m in sys.modules], code)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True)
    assert result.stdout.splitlines()[-1] == "[] 0"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_command_has_help(hearth: Hearth, name: str) -> None:
    ended = hearth(name, "--help")
    assert ended.code == ExitCode.OK
    assert f"hearth {name}" in ended.out


def test_version_is_printed(hearth: Hearth) -> None:
    assert hearth("--version").out.startswith("hearth 0.")


def test_mapped_exit_codes_are_not_zero() -> None:
    assert ExitCode.OK not in EXIT_BY_CODE.values()


@pytest.mark.parametrize(
    "command",
    [("status",), ("status", "--json"), ("events", "-n", "5"), ("events", "-f", "-n", "5"), ("vms",), ("--help",)],
)
def test_command_ends_silently_when_its_reader_has_ended(agent: Agent, command: tuple[str, ...]) -> None:
    async def add_events(engine: RealEngine) -> None:
        await engine.commit(*[Event(EventKind.VM_READY, NOW_S, vm="hearth-small-1", pool="small")] * 5)

    agent.call(add_events)
    endpoint = () if command == ("--help",) else ("--socket", str(agent.socket))
    reader, writer = os.pipe()
    os.close(reader)
    process = start(*command, *endpoint, stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (ExitCode.BROKEN_PIPE, "")


def test_full_disk_error_is_reported(agent: Agent) -> None:
    command = [sys.executable, "-m", "agent", "status", "--json", "--socket", str(agent.socket)]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=20, check=False)
    assert ended.returncode == ExitCode.FAILURE
    assert ended.stderr.startswith("hearth: the output cannot be written: No space left on device")


def test_closed_stdout_is_not_reused_for_connection(agent: Agent) -> None:
    """The connection to the agent must not get the number of the closed stdout, or output goes to the agent."""
    command = f'"{sys.executable}" -m agent status --socket "{agent.socket}" >&-'
    ended = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, timeout=20, check=False)
    assert (ended.returncode, ended.stderr) == (ExitCode.OK, "")
