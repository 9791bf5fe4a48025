"""The steps of `hearth service` with a simulated launchd that has the quirks of the real one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.host.service import launchctl, launchd_service
from agent.host.service.errors import ServiceError, ServiceMissingError
from agent.host.service.launchctl import Launchctl, parse_job
from agent.host.service.launchd_service import Service
from agent.host.service.plist import newsyslog, render
from agent.processes.command import Command, CommandFailedError, CommandRunner
from agent.processes.process import identify, is_alive
from tests.support.processes import eventually, gone

if TYPE_CHECKING:
    from agent.host.service.target import Target
    from tests.support.launchd import Launchd

pytestmark = pytest.mark.slow

# Like the agent: a VM in its own session, a helper in the group of the agent, and a stop that takes some time.
AGENT = """
    import os, signal, subprocess, sys, time
    from pathlib import Path
    here = Path({here!r})
    if not (here / "vm").exists():
        vm = subprocess.Popen(["sleep", "60"], start_new_session=True)
        (here / "vm").write_text(str(vm.pid))
    helper = subprocess.Popen(["sleep", "60"])
    (here / "helper").write_text(str(helper.pid))
    def stop(*_):
        time.sleep({stop_s})
        helper.kill()
        os._exit(0)
    signal.signal(signal.SIGTERM, stop)
    (here / "limits").write_text(f"{{os.umask(0):o}} {{sorted(os.environ)}} {{sys.argv[1:]}}")
    print("started", flush=True)
    signal.pause()
"""


class Mac:
    """A program, and a service that runs it."""

    def __init__(self, launchd: Launchd, folder: Path) -> None:
        self.launchd = launchd
        self.folder = folder
        self.program = folder / "hearth"
        self.write_program()

    def write_program(self, stop_s: float = 0.3) -> None:
        code = textwrap.dedent(AGENT).format(here=str(self.folder), stop_s=stop_s)
        self.program.write_text(f"#!{sys.executable}\n{code}")
        self.program.chmod(0o755)

    def service(self, target: Target | None = None) -> Service:
        runner = CommandRunner()
        return Service(target or self.launchd.daemon(), Launchctl(runner), runner)

    def plist(self, target: Target | None = None, **environment: str) -> bytes:
        chosen = target or self.launchd.daemon()
        return render(chosen, program=self.program, config=self.folder / "hearth.toml", environment=environment)

    async def install(self, service: Service, **environment: str) -> tuple[bool, list[str]]:
        return await service.install(self.plist(service.target, **environment), newsyslog(service.target))

    async def pid(self, name: str) -> int:
        path = self.folder / name
        return int(await eventually(lambda: path.exists() and path.read_text()))

    def close(self) -> None:
        for name in ("vm", "helper"):
            if (self.folder / name).exists():
                identity = identify(int((self.folder / name).read_text()))
                if identity:
                    os.kill(identity.pid, signal.SIGKILL)


@pytest.fixture
def mac(launchd: Launchd, tmp_path: Path) -> object:
    made = Mac(launchd, tmp_path)
    yield made
    launchd.close()
    made.close()


async def test_install_starts_the_job_and_is_idempotent(mac: Mac) -> None:
    service = mac.service()
    assert await mac.install(service) == (True, [])
    job = await service.find_job()
    assert job is not None
    assert (job.state, job.runs, job.program) == ("running", 1, str(mac.program))
    limits = mac.folder / "limits"
    limits_text = await eventually(lambda: limits.read_text() if limits.exists() else "")
    assert limits_text.startswith("77 ['HOME', 'LANG', ")
    assert limits_text.endswith(f"['run', '--config', '{mac.folder}/hearth.toml']")
    assert (service.target.logs / "launchd.out.log").read_text() == "started\n"
    assert service.target.plist.stat().st_mode & 0o777 == 0o644
    assert service.target.newsyslog.read_text() == newsyslog(service.target)
    assert [path.name for path in service.target.plist.parent.iterdir()] == ["dev.hearth.agent.plist"]

    assert await mac.install(service) == (False, [])
    assert (await service.find_job()) == job
    assert [call[0] for call in mac.launchd.calls()] == ["enable", "bootstrap"]


async def test_upgrade_waits_for_the_old_agent_and_keeps_vms(mac: Mac) -> None:
    service = mac.service()
    await mac.install(service)
    vm, (old,) = await mac.pid("vm"), mac.launchd.pids()

    changed, _ = await mac.install(service, TART_HOME="/Volumes/VMs")

    assert changed
    (new,) = mac.launchd.pids()
    assert new != old
    assert identify(old) is None, "the old agent had ended before the new one started"
    assert is_alive(identify(vm)), "the VM has its own session"  # type: ignore[arg-type]
    assert [call[0] for call in mac.launchd.calls()] == ["enable", "bootstrap", "bootout", "enable", "bootstrap"]


async def test_upgrade_restores_the_old_job_when_launchd_refuses(mac: Mac, monkeypatch: pytest.MonkeyPatch) -> None:
    service = mac.service()
    await mac.install(service)
    before = service.target.plist.read_bytes()
    bootstrap = Launchctl.bootstrap

    async def refuse_the_new(self: Launchctl, target: Target, plist: Path) -> object:
        refused = b"/Volumes/VMs" in plist.read_bytes()
        mac.launchd.set("refuse-bootstrap", "5") if refused else None
        try:
            return await bootstrap(self, target, plist)
        finally:
            mac.launchd.unset("refuse-bootstrap") if refused else None

    monkeypatch.setattr(Launchctl, "bootstrap", refuse_the_new)
    with pytest.raises(ServiceError, match="bootstrap ended with 5: Bootstrap failed: 5: Input/output error"):
        await mac.install(service, TART_HOME="/Volumes/VMs")
    assert service.target.plist.read_bytes() == before
    assert len(mac.launchd.pids()) == 1


async def test_process_group_survives_a_killed_agent(mac: Mac) -> None:
    service = mac.service()
    await mac.install(service)
    helper, (agent,) = await mac.pid("helper"), mac.launchd.pids()
    os.kill(agent, signal.SIGKILL)
    await eventually(lambda: mac.launchd.pids() != [agent])
    assert is_alive(identify(helper)), "AbandonProcessGroup"  # type: ignore[arg-type]
    os.kill(helper, signal.SIGKILL)

    assert await service.start(), "start does not wait for the ThrottleInterval"
    (again,) = mac.launchd.pids()
    assert again != agent
    assert ["kickstart", service.target.service] in mac.launchd.calls()


async def test_service_stops_starts_restarts_and_uninstalls(mac: Mac) -> None:
    service = mac.service()
    with pytest.raises(ServiceMissingError):
        await service.start()
    await mac.install(service)
    vm = await mac.pid("vm")
    assert not await service.start(), "the job runs already"
    assert await service.stop()
    assert await service.find_job() is None
    assert not await service.stop()
    assert await service.start()
    (first,) = mac.launchd.pids()
    await service.restart()
    assert mac.launchd.pids() != [first]
    assert await service.uninstall()
    assert await service.find_job() is None
    assert not service.target.plist.exists()
    assert not service.target.newsyslog.exists()
    assert not await service.uninstall()
    assert is_alive(identify(vm))  # type: ignore[arg-type]


@pytest.mark.parametrize("code", ["5", "17", "37"])
async def test_loaded_job_is_not_an_error_for_any_launchd_code(mac: Mac, code: str) -> None:
    mac.launchd.set("loaded-answer", code)
    service = mac.service()
    await mac.install(service)
    (running,) = mac.launchd.pids()
    await service._load() if code != "37" else None
    assert mac.launchd.pids() == [running]


async def test_install_enables_a_disabled_service(mac: Mac) -> None:
    service = mac.service()
    runner = CommandRunner()
    await runner.run(Command(("launchctl", "disable", service.target.service), 5))
    assert await mac.install(service) == (True, [])


async def test_user_service_needs_a_login_session(mac: Mac) -> None:
    target = mac.launchd.user()
    service = mac.service(target)
    with pytest.raises(ServiceError, match="125") as caught:
        await mac.install(service)
    assert "log in at the screen" in caught.value.remedy
    mac.launchd.log_in()
    assert (await mac.install(service))[0]
    assert (await service.find_job()) is not None


async def test_install_notes_a_missing_rotation_rule_without_root(mac: Mac, monkeypatch: pytest.MonkeyPatch) -> None:
    mac.launchd.log_in()
    service = mac.service(mac.launchd.user())
    write_text = Path.write_text

    def refuse(path: Path, text: str, encoding: str | None = None) -> int:
        if path == service.target.newsyslog:
            raise PermissionError(13, "Permission denied", str(path))
        return write_text(path, text, encoding=encoding)

    monkeypatch.setattr(Path, "write_text", refuse)
    changed, (note,) = await mac.install(service)
    assert changed
    assert note.endswith("only root can write " + str(service.target.newsyslog) + ": run this once with sudo")
    assert (await mac.install(service))[0] is False


async def test_daemon_errors_have_a_remedy_without_root(mac: Mac) -> None:
    service = mac.service()
    mac.launchd.set("unprivileged")
    with pytest.raises(ServiceError, match="Try re-running the command as root") as caught:
        await mac.install(service)
    assert "with sudo" in caught.value.remedy
    mac.launchd.unset("unprivileged")
    await mac.install(service)
    mac.launchd.set("unprivileged")
    with pytest.raises(ServiceError, match="Operation not permitted") as caught:
        await service.stop()
    assert caught.value.remedy == "run the command with sudo"


async def test_stop_does_not_wait_for_a_blocked_bootout(mac: Mac, monkeypatch: pytest.MonkeyPatch) -> None:
    service = mac.service()
    await mac.install(service)
    mac.launchd.set("bootout-waits")
    monkeypatch.setattr(launchctl, "TIMEOUT_S", 1.0)
    assert await service.stop()
    assert await service.find_job() is None


async def test_stop_fails_when_the_agent_does_not_end(mac: Mac, monkeypatch: pytest.MonkeyPatch) -> None:
    mac.write_program(stop_s=60)
    service = mac.service()
    await mac.install(service)
    await mac.pid("vm")
    monkeypatch.setattr(launchd_service, "UNLOAD_TIMEOUT_S", 0.5)
    with pytest.raises(ServiceError, match="has not ended"):
        await service.stop()


async def test_start_reports_the_exit_code_of_a_crashing_program(mac: Mac, monkeypatch: pytest.MonkeyPatch) -> None:
    mac.program.write_text("#!/bin/sh\nexit 78\n")
    monkeypatch.setattr(launchd_service, "START_TIMEOUT_S", 1.0)
    service = mac.service()
    ended = mac.launchd.state / "jobs"
    await asyncio.gather(mac.install(service), return_exceptions=True)
    await eventually(lambda: any('"78"' in path.read_text() for path in ended.iterdir()))
    job = await service.find_job()
    assert job is not None
    assert job.last_exit == "78"
    with pytest.raises(ServiceError, match="its last exit code is 78"):
        await service._wait_until_running()


async def test_install_writes_no_plist_that_plutil_refuses(
    mac: Mac, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "plutil").write_text('#!/bin/sh\necho "$3: Unexpected character"; exit 1\n')
    (tools / "plutil").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    service = mac.service()
    with pytest.raises(CommandFailedError, match="Unexpected character"):
        await mac.install(service)
    assert not service.target.plist.exists()


def test_parse_job_accepts_an_unknown_layout() -> None:
    job = parse_job("system/x = {\n\tstate = running\n\tpid = many\n}\n")
    assert (job.state, job.pid, job.runs, job.last_exit) == ("running", None, 0, "")


async def test_uninstall_ends_the_agent_process(mac: Mac) -> None:
    service = mac.service()
    await mac.install(service)
    (pid,) = mac.launchd.pids()
    identity = identify(pid)
    assert identity is not None
    await service.uninstall()
    await gone([identity])
