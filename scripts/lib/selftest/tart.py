"""Checks that need a Mac with Tart: behaviour that the driver relies on and that was only read in its source."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ulid import ULID

from agent.config import TartConfig
from agent.hypervisors.tart.layout import SOCKET
from agent.hypervisors.tart.processes import list_framework_pids
from agent.hypervisors.tart.run_result import RunEnding, parse_run_result
from agent.processes.posix_locks import lock_holder
from agent.processes.process import is_alive, kill, spawn_detached

if TYPE_CHECKING:
    from agent.processes.process import ProcessIdentity
    from scripts.lib.selftest.report import Call, Report

START_S: Final = 60.0
BOOT_S: Final = 240.0


class TartChecks:
    """Runs the checks in order: each prepares the next."""

    def __init__(self, report: Report, program: str, image: str) -> None:
        self._report, self._program, self._image = report, program, image
        stem = f"hearth-selftest-{str(ULID()).lower()}"
        self._vms = tuple(f"{stem[:-1]}{number}" for number in (1, 2, 3))
        self._home = TartConfig().home_path
        self._logs = Path(tempfile.mkdtemp(prefix="hearth-selftest-"))
        self._runs: dict[str, ProcessIdentity] = {}

    async def run(self) -> None:
        """Run all checks. Always removes the VMs that it made."""
        try:
            await self._check_clone()
            await self._check_run()
            await self._check_suspend()
            await self._check_slots()
        finally:
            self._report.begin("T-end", "Are all VMs of this run removed?")
            for name in self._vms:
                self._kill(name)
                await self._tart("delete", name)
            left = [name for name in self._vms if (self._home / "vms" / name).exists()]
            self._answer(f"left: {left or 'nothing'}", expected=not left)
            shutil.rmtree(self._logs, ignore_errors=True)

    async def _check_clone(self) -> None:
        self._report.begin("T-version", "Which release is this, and what does it list?")
        version, listed = await self._tart("--version"), await self._tart("list", "--format", "json")
        self._answer(version.stdout.strip(), expected=version.exit_code == listed.exit_code == 0)

        self._report.begin("T-clone", "How long does a clone of a cached image take?")
        call = await self._tart("clone", self._image, self._vms[0], timeout_s=300)
        self._answer(f"exit {call.exit_code}, {call.seconds} s", expected=call.exit_code == 0)

        self._report.begin("T-mac", "Does `set --random-mac` change the clone's address?")
        before = self._config("macAddress")
        await self._tart("set", self._vms[0], "--random-mac")
        self._answer(f"{before} became {self._config('macAddress')}", expected=before != self._config("macAddress"))

    async def _check_run(self) -> None:
        name = self._vms[0]
        self._report.begin("T-run", "Does the control socket appear when a VM is started, its output in a file?")
        began_s = time.monotonic()
        appeared = await self._start(name)
        self._answer(f"{'after' if appeared else 'not in'} {time.monotonic() - began_s:.1f} s", expected=appeared)

        self._report.begin("T-lock", "Does the process hold the lock on config.json?")
        holder = lock_holder(self._folder(name) / "config.json")
        self._answer(f"held by {holder}, `tart run` is {self._runs[name].pid}", expected=holder == self._runs[name].pid)

        self._report.begin("T-boot", "How long from the start to a command in the guest?")
        ready = await self._wait_for_guest(name)
        self._answer(f"{time.monotonic() - began_s:.1f} s", expected=ready)

        self._report.begin("T-exec", "Does `exec` pass on the command's exit code, and nothing but its output?")
        code, printed = (
            await self._tart("exec", name, "sh", "-c", "exit 7"),
            await self._tart("exec", name, "echo", "hi"),
        )
        self._answer(f"exit {code.exit_code}, stdout {printed.stdout!r}, stderr {printed.stderr!r}",
                     expected=code.exit_code == 7 and printed.stdout == "hi\n")  # fmt: skip

        self._report.begin("T-ip", "Do the guest agent and the DHCP leases report the same address?")
        agent = await self._tart("ip", name, "--resolver", "agent", "--wait", "30", timeout_s=60)
        dhcp = await self._tart("ip", name, "--resolver", "dhcp", "--wait", "30", timeout_s=60)
        addresses = f"agent {agent.stdout.strip()!r}, dhcp {dhcp.stdout.strip()!r}"
        self._answer(addresses, expected=agent.exit_code == 0 and agent.stdout == dhcp.stdout)

        self._report.begin("T-helper", "Which processes does a VM have in addition to `tart run`?")
        self._answer(f"com.apple.Virtualization processes: {await asyncio.to_thread(list_framework_pids)}")

    async def _check_suspend(self) -> None:
        name = self._vms[0]
        self._report.begin("T-suspend", "Does a suspended VM end its process and keep its memory?")
        began_s = time.monotonic()
        await self._tart("suspend", name)
        ended = await self._wait_for_kill(name)
        kept = await self._tart("get", name, "--format", "json")
        self._answer(f"{time.monotonic() - began_s:.1f} s; {kept.stdout.strip()[:200]}",
                     expected=ended and "suspended" in kept.stdout)  # fmt: skip

        self._report.begin("T-resume", "Does the control socket appear after a resume as it does after a boot?")
        began_s = time.monotonic()
        appeared = await self._start(name)
        socket_s = time.monotonic() - began_s
        ready = await self._wait_for_guest(name)
        self._answer(
            f"socket {socket_s:.1f} s, command {time.monotonic() - began_s:.1f} s", expected=appeared and ready
        )

    async def _check_slots(self) -> None:
        self._report.begin("T-slots", "What is the error when a third VM starts?")
        for name in self._vms[1:]:
            await self._tart("clone", self._image, name, timeout_s=300)
            await self._tart("set", name, "--random-mac")
            await self._start(name)
        await self._wait_for_kill(self._vms[2])
        output = (self._logs / self._vms[2]).read_text(errors="replace")
        self._answer(output.strip()[-300:], expected=parse_run_result(output, 1).ending is RunEnding.NO_SLOT)

        self._report.begin("T-killed", "Does a killed `tart run` free its lock and its slot immediately?")
        self._kill(self._vms[1])
        await self._wait_for_kill(self._vms[1])
        free = lock_holder(self._folder(self._vms[1]) / "config.json") is None
        again = await self._start(self._vms[2])
        self._answer(
            f"lock {'free' if free else 'held'}, another VM {'starts' if again else 'is refused'}", expected=free
        )

    async def _start(self, name: str) -> bool:
        """Start a detached VM; return whether its control socket appeared in time."""
        (self._folder(name) / SOCKET).unlink(missing_ok=True)
        output = self._logs / name
        output.unlink(missing_ok=True)
        argv = (self._program, "run", "--no-graphics", "--suspendable", name)
        env = {"TART_HOME": str(self._home), "TART_NO_AUTO_PRUNE": "1"}
        self._runs[name] = spawn_detached(argv, output=output, cwd=self._logs, env=env)
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s and is_alive(self._runs[name]):
            if (self._folder(name) / SOCKET).exists():
                return True
            await asyncio.sleep(0.05)
        return False

    async def _wait_for_guest(self, name: str) -> bool:
        deadline_s = time.monotonic() + BOOT_S
        while time.monotonic() < deadline_s:
            if (await self._tart("exec", name, "true", timeout_s=30)).exit_code == 0:
                return True
            await asyncio.sleep(0.5)
        return False

    async def _wait_for_kill(self, name: str) -> bool:
        deadline_s = time.monotonic() + START_S
        while is_alive(self._runs[name]):
            if time.monotonic() > deadline_s:
                break
            await asyncio.sleep(0.05)
        return not is_alive(self._runs[name])

    def _kill(self, name: str) -> None:
        if name in self._runs:
            kill(self._runs[name], signal.SIGKILL)

    def _folder(self, name: str) -> Path:
        return self._home / "vms" / name

    def _config(self, key: str) -> object:
        return json.loads((self._folder(self._vms[0]) / "config.json").read_text()).get(key)

    async def _tart(self, *arguments: str, timeout_s: float = 60) -> Call:
        env = {"TART_NO_AUTO_PRUNE": "1"}
        return await self._report.call(self._program, *arguments, timeout_s=timeout_s, env=env)

    def _answer(self, text: str, *, expected: bool | None = None) -> None:
        finding = self._report.findings[-1]
        finding.answer, finding.expected = text, expected
