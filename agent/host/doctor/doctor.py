"""The doctor: takes the readings of the host's checks, evaluates them, and applies fixes."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent import __version__
from agent.host.doctor import checks, readings
from agent.host.doctor.model import Finding, Subject, decide
from agent.processes.command import Command

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agent.config import Config
    from agent.host.doctor.model import Check, Fix
    from agent.host.doctor.readings import Source
    from agent.host.user_accounts import Account
    from agent.processes.command import CommandRunner

FIX_TIMEOUT_S: Final = 60.0
_ON_MAC: Final = platform.system() == "Darwin"
TOOL_CHECKS: Final[Mapping[str, str]] = {"tart": "tart", "anka": "anka", "anka-license": "anka"}
"""Checks that run the tool of one hypervisor. They are skipped on hosts with another hypervisor."""


class Doctor:
    """Checks one host. `subject` is called for each run, because the time and the logged-in user change."""

    def __init__(
        self,
        subject: Callable[[], Subject],
        runner: CommandRunner,
        checks: Sequence[Check],
        sources: Mapping[str, Source],
    ) -> None:
        self._subject = subject
        self._runner = runner
        self._checks = checks
        self._sources = sources

    async def run_checks(self, only: frozenset[str] = frozenset()) -> list[Finding]:
        """Run the checks named in `only`, or all. Return their findings in the order of the list of checks."""
        subject = self._subject()
        checks = [check for check in self._checks if not only or check.name in only]
        checks = [check for check in checks if TOOL_CHECKS.get(check.name, subject.hypervisor) == subject.hypervisor]
        names = {name for check in checks for name in (*check.required, *check.optional)}
        values = await readings.take_readings(names, self._sources, subject, self._runner)
        found = (decide(check, values, subject) for check in checks)
        return [finding for finding in found if finding is not None]

    async def apply_fix(self, fix: Fix) -> None:
        """Run the commands of a fix. Raises `CommandError`; commands before the failed one have taken effect."""
        subject = self._subject()
        for command in fix.commands:
            argv = command
            if fix.root and not subject.root:
                argv = ("/usr/bin/sudo", "-n", *command)
            elif not fix.root:
                argv = readings.as_user(command, subject)
            await self._runner.run(Command(argv, FIX_TIMEOUT_S))


def build_doctor(subject: Callable[[], Subject], runner: CommandRunner) -> Doctor:
    """Return a doctor with the checks for this operating system."""
    system_checks, sources = (checks.MAC, readings.MAC) if _ON_MAC else (checks.LINUX, readings.LINUX)
    return Doctor(subject, runner, system_checks, {**readings.COMMON, **sources})


def build_subject(config: Config, account: Account, hypervisor: str, *, in_agent: bool) -> Subject:
    """Return the subject of the checks for a configured host. `hypervisor` is the name of the driver."""
    data_dir = config.data_dir
    vm_dirs, tool = [data_dir], ""
    if hypervisor == "tart":
        tool = config.hypervisor.tart.program
        home = config.hypervisor.tart.home or os.environ.get("TART_HOME")
        vm_dirs.insert(0, Path(home or account.home / ".tart"))
    if hypervisor == "anka":
        tool = config.hypervisor.anka.binary or "anka"
        vm_dirs.insert(0, Path("/Library/Application Support/Veertu/Anka"))
    return Subject(
        hypervisor=hypervisor, data_dir=data_dir, vm_dirs=tuple(vm_dirs),
        disk_reserve_bytes=config.host.disk_reserve_mib << 20, user=account.name,
        uid=account.uid, home=account.home, tool=tool, version=__version__, root=os.geteuid() == 0, in_agent=in_agent,
        now_s=time.time(),
    )  # fmt: skip
