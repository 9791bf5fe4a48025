"""Readings for the checks: the command or function for each, and taking them concurrently with time limits."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.host import disk_space
from agent.host.doctor.model import Reading, Readings, Subject
from agent.host.doctor.network import SHARING, TIME_SERVER
from agent.host.doctor.session import LOCAL_NETWORK
from agent.host.doctor.software import UPDATES
from agent.host.doctor.storage import volume_of
from agent.host.service.target import LABEL
from agent.processes.command import Command, CommandError, CommandTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from agent.processes.command import CommandRunner

TIMEOUT_S: Final = 10.0
SLOW_TIMEOUT_S: Final = 30.0
MAX_CONCURRENT: Final = 4
"""Commands that run at the same time: enough to be quick, few enough not to slow builds."""


@dataclass(frozen=True, slots=True)
class CommandSource:
    """A command that prints a reading. `of_user`: run it in the session of the agent's user, also as root."""

    argv: Callable[[Subject], tuple[str, ...]]
    timeout_s: float = TIMEOUT_S
    of_user: bool = False


@dataclass(frozen=True, slots=True)
class FunctionSource:
    """A function that returns a reading. It runs in a thread and can raise `OSError`."""

    read: Callable[[Subject], str]


def _fixed(*argv: str, timeout_s: float = TIMEOUT_S) -> CommandSource:
    return CommandSource(lambda _: argv, timeout_s)


def _exported(domain: str) -> CommandSource:
    return _fixed("/usr/bin/defaults", "export", domain, "-")


def _keychain(subject: Subject) -> tuple[str, ...]:
    path = f"{subject.home}/Library/Keychains/login.keychain-db"
    return ("/usr/bin/security", "show-keychain-info", path)


def _volume(subject: Subject) -> str:
    return volume_of(str(subject.vm_dirs[0]))


def _job(subject: Subject) -> tuple[str, ...]:
    domain = f"gui/{subject.uid}" if subject.for_tart else "system"
    return ("/bin/launchctl", "print", f"{domain}/{LABEL}")


def _text_of(path: str) -> Callable[[Subject], str]:
    def read(_: Subject) -> str:
        try:
            return Path(path).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    return read


def _exists(path: str) -> Callable[[Subject], str]:
    return lambda _: "yes" if os.path.lexists(path) else "no"


def _space(subject: Subject) -> str:
    volume = disk_space.measure_volume(subject.data_dir)
    return json.dumps(
        {
            "free": volume.free_bytes,
            "total": volume.total_bytes,
            "purgeable": disk_space.purgeable_bytes(subject.data_dir),
        }
    )


def _own_files(_: Subject) -> str:
    return str(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _kvm(_: Subject) -> str:
    if not Path("/dev/kvm").exists():
        return "no"
    return "rw" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "exists, but permission is denied"


def _qemu(_: Subject) -> tuple[str, ...]:
    machine = {"arm64": "aarch64"}.get(platform.machine(), platform.machine())
    return (f"qemu-system-{machine}", "--version")


Source = CommandSource | FunctionSource

COMMON: Final[Mapping[str, Source]] = {
    "space": FunctionSource(_space),
    "own_files": FunctionSource(_own_files),
    "qemu": CommandSource(_qemu),
}
MAC: Final[Mapping[str, Source]] = {
    "pmset": _fixed("/usr/bin/pmset", "-g", "custom"),
    "thermal": _fixed("/usr/bin/pmset", "-g", "therm"),
    "pressure": _fixed("/usr/sbin/sysctl", "-n", "kern.memorystatus_vm_pressure_level"),
    "swap": _fixed("/usr/sbin/sysctl", "vm.swapusage"),
    "vm_stat": _fixed("/usr/bin/vm_stat"),
    "hardware": _fixed("/usr/sbin/system_profiler", "-json", "SPHardwareDataType", timeout_s=SLOW_TIMEOUT_S),
    "loginwindow": _exported("/Library/Preferences/com.apple.loginwindow"),
    "autologin": _fixed("/usr/sbin/sysadminctl", "-autologin", "status"),
    "kcpassword": FunctionSource(_exists("/etc/kcpassword")),
    "console": _fixed("/usr/bin/stat", "-f", "%Su", "/dev/console"),
    "keychain": CommandSource(_keychain, of_user=True),
    "screenlock": CommandSource(lambda _: ("/usr/sbin/sysadminctl", "-screenLock", "status"), of_user=True),
    # `sudo defaults write` of this domain writes to the preferences of root, where macOS reads it.
    "local_network": _exported(f"/var/root/Library/Preferences/{LOCAL_NETWORK}"),
    "filevault": _fixed("/usr/bin/fdesetup", "status"),
    "csrutil": _fixed("/usr/bin/csrutil", "status"),
    "sw_vers": _fixed("/usr/bin/sw_vers"),
    "sharing": _exported(SHARING.removesuffix(".plist")),
    "leases": FunctionSource(_text_of("/var/db/dhcpd_leases")),
    "sntp": _fixed("/usr/bin/sntp", "-t", "3", TIME_SERVER),
    "diskutil": CommandSource(
        lambda subject: ("/usr/sbin/diskutil", "info", "-plist", _volume(subject)), SLOW_TIMEOUT_S
    ),
    "spotlight": CommandSource(lambda subject: ("/usr/bin/mdutil", "-s", _volume(subject))),
    "snapshots": CommandSource(
        lambda subject: ("/usr/bin/tmutil", "listlocalsnapshots", _volume(subject)), SLOW_TIMEOUT_S
    ),
    "backups": _fixed("/usr/bin/tmutil", "destinationinfo"),
    "excluded": CommandSource(lambda subject: ("/usr/bin/tmutil", "isexcluded", *map(str, subject.vm_dirs))),
    "tart": CommandSource(lambda subject: (subject.tool, "--version")),
    "anka": CommandSource(lambda subject: (subject.tool, "-j", "version")),
    "license": CommandSource(lambda subject: (subject.tool, "-j", "license", "show")),
    "installed": _fixed("/opt/hearth/current/bin/hearth", "--version"),
    "service": CommandSource(_job),
    "updates": _exported(UPDATES),
    "processes": _fixed("/bin/ps", "-axo", "pid=,ppid=,etime=,command="),
    "system_files": _fixed("/usr/sbin/sysctl", "-n", "kern.maxfilesperproc"),
}
LINUX: Final[Mapping[str, Source]] = {
    "kvm": FunctionSource(_kvm),
    "timedatectl": _fixed("timedatectl", "show", "-p", "NTPSynchronized", "--value"),
    "system_files": FunctionSource(_text_of("/proc/sys/fs/nr_open")),
}


def as_user(argv: tuple[str, ...], subject: Subject) -> tuple[str, ...]:
    """Return a command that runs in the session of the agent's user, also if root runs it."""
    if not (subject.root and subject.uid):
        return argv
    return ("/bin/launchctl", "asuser", str(subject.uid), "/usr/bin/sudo", "-n", "-u", subject.user, *argv)


async def take_readings(
    names: Iterable[str], sources: Mapping[str, Source], subject: Subject, runner: CommandRunner
) -> Readings:
    """Take readings, `MAX_CONCURRENT` at a time. A reading that fails has its `error` set; none raises."""
    gate = asyncio.Semaphore(MAX_CONCURRENT)
    sorted_names = sorted(set(names))

    async def take(name: str) -> Reading:
        async with gate:
            return await _take_reading(sources[name], subject, runner)

    return dict(zip(sorted_names, await asyncio.gather(*(take(name) for name in sorted_names)), strict=True))


async def _take_reading(source: Source, subject: Subject, runner: CommandRunner) -> Reading:
    if isinstance(source, FunctionSource):
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return Reading(await asyncio.to_thread(source.read, subject))
        except TimeoutError:
            return Reading(error=f"no result within {TIMEOUT_S:g} s")
        except OSError as error:
            return Reading(error=str(error))
    argv = source.argv(subject)
    if source.of_user:
        argv = as_user(argv, subject)
    try:
        result = await runner.run(Command(argv, source.timeout_s, env={"LC_ALL": "C"}), check=False)
    except CommandTimeoutError:
        return Reading(error=f"`{argv[0]}` did not end within {source.timeout_s:g} s")
    except CommandError as error:
        return Reading(error=error.message)
    return Reading(result.stdout.decode(errors="replace"), result.stderr.decode(errors="replace"), result.exit_code)
