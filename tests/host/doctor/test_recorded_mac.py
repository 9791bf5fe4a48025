"""All checks and fixes on a whole Mac, from recorded outputs of its tools."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from agent.engine.conditions import ConditionBoard
from agent.host.doctor import checks, readings
from agent.host.doctor.doctor import Doctor
from agent.host.doctor.model import Severity, Subject
from agent.host.doctor.readings import FunctionSource
from agent.host.host_monitor import HostMonitor
from agent.host.vitals import Vitals, VitalsSampler
from agent.processes.command import Command, CommandResult, CommandRunner, ProgramMissingError
from tests.host.doctor.cases import RECORDED, leases, space, subject

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.host.doctor.readings import Source

AS_CI: Final = "/bin/launchctl asuser 501 /usr/bin/sudo -n -u ci "

SET_UP: Final[dict[str, tuple[str, int]]] = {
    "/usr/bin/pmset -g custom": ("pmset_mini.txt", 0),
    "/usr/bin/pmset -g therm": ("pmset_therm_cool.txt", 0),
    "/usr/sbin/sysctl -n kern.memorystatus_vm_pressure_level": ("=1", 0),
    "/usr/sbin/sysctl vm.swapusage": ("sysctl_swap.txt", 0),
    "/usr/bin/vm_stat": ("vm_stat.txt", 0),
    "/usr/sbin/system_profiler -json SPHardwareDataType": ("system_profiler_m4.json", 0),
    "/usr/bin/defaults export /Library/Preferences/com.apple.loginwindow -": ("defaults_loginwindow_auto.plist", 0),
    "/usr/sbin/sysadminctl -autologin status": ("sysadminctl_autologin_on.txt", 0),
    "/usr/bin/stat -f %Su /dev/console": ("=ci", 0),
    f"{AS_CI}/usr/bin/security show-keychain-info /Users/ci/Library/Keychains/login.keychain-db": (
        "security_open.txt", 0,
    ),
    f"{AS_CI}/usr/sbin/sysadminctl -screenLock status": ("sysadminctl_screenlock_off.txt", 0),
    "/usr/bin/defaults export /var/root/Library/Preferences/com.apple.network.local-network -": (
        "defaults_local_network.plist", 0,
    ),
    "/usr/bin/fdesetup status": ("fdesetup_off.txt", 0),
    "/usr/bin/csrutil status": ("csrutil_on.txt", 0),
    "/usr/bin/sw_vers": ("sw_vers_26.txt", 0),
    "/usr/bin/defaults export /Library/Preferences/SystemConfiguration/com.apple.InternetSharing.default -": (
        "defaults_sharing_600.plist", 0,
    ),
    "/usr/bin/sntp -t 3 time.apple.com": ("sntp_good.txt", 0),
    "/usr/sbin/diskutil info -plist /System/Volumes/Data": ("diskutil_apfs.plist", 0),
    "/usr/bin/mdutil -s /System/Volumes/Data": ("mdutil_off.txt", 0),
    "/usr/bin/tmutil listlocalsnapshots /System/Volumes/Data": ("tmutil_no_snapshots.txt", 0),
    "/usr/bin/tmutil destinationinfo": ("tmutil_no_destination.txt", 1),
    "/usr/bin/tmutil isexcluded /Users/ci/.tart /var/lib/hearth": ("tmutil_excluded.txt", 0),
    "tart --version": ("tart_version.txt", 0),
    "/opt/hearth/current/bin/hearth --version": ("=hearth 0.1.0", 0),
    "/bin/launchctl print gui/501/dev.hearth.agent": ("launchctl_running.txt", 0),
    "/usr/bin/defaults export /Library/Preferences/com.apple.SoftwareUpdate -": ("defaults_updates_off.plist", 0),
    "/bin/ps -axo pid=,ppid=,etime=,command=": ("ps_good.txt", 0),
    "/usr/sbin/sysctl -n kern.maxfilesperproc": ("=122880", 0),
}  # fmt: skip
"""Outputs of a Mac that was set up as the docs describe. After `=` the output itself, else the name of a recording."""

NEW_MAC: Final[dict[str, tuple[str, int]]] = {
    "/usr/bin/pmset -g custom": ("pmset_factory.txt", 0),
    "/usr/bin/defaults export /Library/Preferences/com.apple.loginwindow -": ("defaults_loginwindow_none.plist", 0),
    "/usr/sbin/sysadminctl -autologin status": ("sysadminctl_autologin_off.txt", 0),
    f"{AS_CI}/usr/bin/security show-keychain-info /Users/ci/Library/Keychains/login.keychain-db": (
        "security_timeout.txt", 0,
    ),
    f"{AS_CI}/usr/sbin/sysadminctl -screenLock status": ("sysadminctl_screenlock_on.txt", 0),
    "/usr/bin/defaults export /var/root/Library/Preferences/com.apple.network.local-network -": (
        "defaults_empty.plist", 0,
    ),
    "/usr/bin/fdesetup status": ("fdesetup_on.txt", 0),
    "/usr/bin/defaults export /Library/Preferences/SystemConfiguration/com.apple.InternetSharing.default -": (
        "defaults_empty.plist", 0,
    ),
    "/usr/bin/mdutil -s /System/Volumes/Data": ("mdutil_on.txt", 0),
    "/usr/bin/defaults export /Library/Preferences/com.apple.SoftwareUpdate -": ("defaults_updates_on.plist", 0),
    "/bin/launchctl print gui/501/dev.hearth.agent": ("launchctl_missing.txt", 113),
}  # fmt: skip
"""Outputs of a new Mac that differ from `SET_UP`."""

CHANGED_BY_FIX: Final = {
    "/usr/bin/pmset -a": ["/usr/bin/pmset -g custom"],
    "/usr/bin/mdutil -i off": ["/usr/bin/mdutil -s /System/Volumes/Data"],
    "/usr/bin/defaults write com.apple.network.local-network": [
        "/usr/bin/defaults export /var/root/Library/Preferences/com.apple.network.local-network -"
    ],
    "/usr/bin/defaults write /Library/Preferences/com.apple.SoftwareUpdate": [
        "/usr/bin/defaults export /Library/Preferences/com.apple.SoftwareUpdate -"
    ],
    "/usr/bin/defaults write /Library/Preferences/SystemConfiguration": [
        "/usr/bin/defaults export /Library/Preferences/SystemConfiguration/com.apple.InternetSharing.default -"
    ],
    f"{AS_CI}/usr/bin/security set-keychain-settings": [
        f"{AS_CI}/usr/bin/security show-keychain-info /Users/ci/Library/Keychains/login.keychain-db"
    ],
}
"""The commands whose output changes to `SET_UP` after a fix."""


class Mac(CommandRunner):
    """Runs no command but returns its recorded output. Records the commands that change something."""

    def __init__(self, **changes: tuple[str, int]) -> None:
        super().__init__()
        self.outputs = {**SET_UP, **changes}
        self.changed: list[str] = []

    async def run(
        self, command: Command, *, check: bool = True, on_output: Callable[[bytes], None] | None = None
    ) -> CommandResult:
        text = " ".join(command.argv)
        for start, changed in CHANGED_BY_FIX.items():
            if text.startswith(start):
                self.changed.append(text)
                self.outputs |= {name: SET_UP[name] for name in changed}
                return CommandResult(0, b"", b"", False, 0.0)
        if text not in self.outputs:
            raise ProgramMissingError(f"no recording of `{text}`")
        name, code = self.outputs[text]
        answer = name[1:].encode() if name.startswith("=") else (RECORDED / name).read_bytes()
        return CommandResult(code, answer, b"", False, 0.0)


def doctor(mac: Mac, here: Subject, *, kcpassword: str = "yes") -> Doctor:
    calls = {
        "kcpassword": kcpassword, "leases": leases(3).out, "space": space(300).out, "own_files": "65536",
    }  # fmt: skip
    sources: Mapping[str, Source] = {
        **readings.COMMON, **readings.MAC, **{name: _returning(text) for name, text in calls.items()},
    }  # fmt: skip
    return Doctor(lambda: here, mac, checks.MAC, sources)


def _returning(text: str) -> FunctionSource:
    return FunctionSource(lambda _: text)


async def test_all_checks_pass_on_a_mac_set_up_by_the_docs() -> None:
    found = await doctor(Mac(), subject()).run_checks()
    assert [
        (finding.check.name, finding.result) for finding in found if finding.result.severity is not Severity.OK
    ] == []
    tools = {"anka", "anka-license"}
    assert {finding.check.name for finding in found} == {check.name for check in checks.MAC} - tools


async def test_fixes_leave_only_manual_steps_on_a_new_mac() -> None:
    mac = Mac(**NEW_MAC)
    doctor_of_mac = doctor(mac, subject(), kcpassword="no")
    found = await doctor_of_mac.run_checks()
    failing = {finding.check.name for finding in found if finding.is_failing}
    assert failing == {
        "sleep", "power-loss", "low-power", "auto-login", "keychain", "screen-lock", "local-network", "filevault",
        "updates", "dhcp-lease-time", "spotlight", "service",
    }  # fmt: skip
    for finding in found:
        if finding.is_failing and finding.result.fix:
            await doctor_of_mac.apply_fix(finding.result.fix)
    left = {
        finding.check.name: finding.result.remedy for finding in await doctor_of_mac.run_checks() if finding.is_failing
    }
    assert left.keys() == {"auto-login", "screen-lock", "filevault", "service"}, "these need a person or a password"
    assert "/usr/bin/pmset -a sleep 0 disksleep 0 standby 0" in mac.changed


@pytest.mark.parametrize("root", [True, False])
async def test_fix_uses_sudo_only_when_not_root(root: bool) -> None:
    mac = Mac(**{"/usr/bin/pmset -g custom": ("pmset_factory.txt", 0)})
    ran: list[tuple[str, ...]] = []

    class Noting(CommandRunner):
        async def run(
            self, command: Command, *, check: bool = True, on_output: Callable[[bytes], None] | None = None
        ) -> CommandResult:
            ran.append(command.argv)
            return CommandResult(0, b"", b"", False, 0.0)

    here = replace(subject(), root=root)
    (found,) = await doctor(mac, here).run_checks(frozenset({"sleep"}))
    assert found.result.fix is not None
    await Doctor(lambda: here, Noting(), (), {}).apply_fix(found.result.fix)
    pmset = ("/usr/bin/pmset", "-a", "sleep", "0", "disksleep", "0", "standby", "0")
    assert ran == [pmset if root else ("/usr/bin/sudo", "-n", *pmset)]


async def test_failing_checks_of_a_new_mac_become_conditions() -> None:
    board, mac = ConditionBoard(), Mac(**NEW_MAC)
    doctor_of_mac = doctor(mac, subject(in_agent=True), kcpassword="no")
    monitor = HostMonitor(doctor_of_mac, board.post, period_s=60, vitals=VitalsSampler(Vitals))
    await monitor.run_checks()
    assert {condition.type for condition in board.all() if condition.problem} == {
        "SleepEnabled", "AutomaticLoginOff", "KeychainLocked", "LocalNetworkDenied", "FileVaultEnabled",
        "AutomaticUpdatesOn", "DhcpLeaseTimeLong",
    }  # fmt: skip
    assert {condition.type for condition in board.all() if not condition.problem} == {
        "AutomaticRestartOff", "LowPowerMode", "ScreenLockEnabled", "SpotlightIndexesVms", "ServiceNotSupervised",
    }  # fmt: skip
    mac.outputs = dict(SET_UP)
    await monitor.run_checks()
    assert {condition.type for condition in board.all() if str(condition.status) == "true"} == {"AutomaticLoginOff"}, (
        "its password is not stored"
    )
