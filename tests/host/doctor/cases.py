"""Cases for the checks: recorded readings, and the severity and a part of the message that they must give."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.host.doctor.model import Reading, Severity, Subject

RECORDED = Path(__file__).parents[1] / "recorded"
OK, UNKNOWN, WARNING, ERROR = Severity.OK, Severity.UNKNOWN, Severity.WARNING, Severity.ERROR
NOW_S = 1_780_000_000.0  # 2026-05-28


def subject(**changes: Any) -> Subject:
    values: dict[str, Any] = {
        "hypervisor": "tart", "data_dir": Path("/var/lib/hearth"), "user": "ci", "uid": 501, "home": Path("/Users/ci"),
        "vm_dirs": (Path("/Users/ci/.tart"), Path("/var/lib/hearth")), "disk_reserve_bytes": 2 << 30,
        "tool": "tart", "version": "0.1.0", "root": True, "in_agent": False, "now_s": NOW_S,
    }  # fmt: skip
    return Subject(**{**values, **changes})


def out(text: str, exit_code: int = 0) -> Reading:
    return Reading(text, exit_code=exit_code)


def recorded(name: str) -> Reading:
    return Reading((RECORDED / name).read_text())


def on_stderr(name: str, exit_code: int = 0) -> Reading:
    return Reading("", (RECORDED / name).read_text(), exit_code)


def failed(text: str) -> Reading:
    return Reading(error=text)


@dataclass(frozen=True)
class Case:
    check: str
    severity: Severity
    message: str
    readings: dict[str, Reading]
    changes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.check}-{self.severity}-{self.message[:30]}"


def space(free_gib: float, total_gib: float = 460) -> Reading:
    free, total = int(free_gib * 2**30), int(total_gib * 2**30)
    return out(f'{{"free": {free}, "total": {total}, "purgeable": {30 << 30}}}')


def memory(level: str) -> dict[str, Reading]:
    return {"pressure": out(f"{level}\n"), "swap": recorded("sysctl_swap.txt"), "vm_stat": recorded("vm_stat.txt")}


def login(domain: str, status: str, kcpassword: str) -> dict[str, Reading]:
    return {"loginwindow": recorded(domain), "autologin": on_stderr(status), "kcpassword": out(kcpassword)}


def leases(count: int) -> Reading:
    block = "{{\n\tip_address=192.168.64.{0}\n\tlease=0x{1:x}\n}}\n"
    return out("".join(block.format(number + 2, int(NOW_S) + 600) for number in range(count)))


def backups(snapshots: str, destination: str, excluded: str) -> dict[str, Reading]:
    return {"snapshots": recorded(snapshots), "backups": recorded(destination), "excluded": recorded(excluded)}


def files(own: int, system: int) -> dict[str, Reading]:
    return {"own_files": out(str(own)), "system_files": out(f"{system}\n")}


QEMU = {"hypervisor": "qemu"}
ANKA = {"hypervisor": "anka", "uid": 0, "user": "root"}
AUTO, NONE = "defaults_loginwindow_auto.plist", "defaults_loginwindow_none.plist"
LOGIN_ON, LOGIN_OFF = "sysadminctl_autologin_on.txt", "sysadminctl_autologin_off.txt"
NEW = {"sw_vers": recorded("sw_vers_26.txt")}

MAC_CASES = (
    Case("hardware", OK, "Mac mini Mac16,10, Apple M4, 16 GB", {"hardware": recorded("system_profiler_m4.json")}),
    Case("hardware", ERROR, "6-Core Intel Core i7 cannot", {"hardware": recorded("system_profiler_intel.json")}),
    Case("hardware", UNKNOWN, "does not report", {"hardware": out("{}")}),
    Case("macos", OK, "macOS 26.1 (25B78)", {"sw_vers": recorded("sw_vers_26.txt")}),
    Case("macos", ERROR, "macOS 13.6.9 (22G931) is older", {"sw_vers": recorded("sw_vers_13.txt")}),
    Case("macos", WARNING, "is a beta", {"sw_vers": recorded("sw_vers_beta.txt")}),
    Case("sleep", OK, "is disabled", {"pmset": recorded("pmset_mini.txt")}),
    Case("sleep", ERROR, "sleeps after 1 idle", {"pmset": recorded("pmset_factory.txt")}),
    Case("sleep", WARNING, "disk sleep or standby", {"pmset": recorded("pmset_laptop.txt")}),
    Case("power-loss", OK, "starts after", {"pmset": recorded("pmset_mini.txt")}),
    Case("power-loss", WARNING, "stays off", {"pmset": recorded("pmset_factory.txt")}),
    Case("low-power", OK, "off", {"pmset": recorded("pmset_laptop.txt")}),
    Case("low-power", WARNING, "slows every build", {"pmset": recorded("pmset_factory.txt")}),
    Case("heat", OK, "does not slow", {"thermal": recorded("pmset_therm_cool.txt")}),
    Case("heat", WARNING, "to 62 %", {"thermal": recorded("pmset_therm_hot.txt")}),
    Case("memory", OK, "is normal", memory("1")),
    Case("memory", WARNING, "pressure is warning", memory("2")),
    Case("memory", ERROR, "pressure is critical", memory("4")),
    Case("memory", UNKNOWN, "unknown memory pressure", memory("")),
    Case("auto-login", OK, "ci is logged in", login(AUTO, LOGIN_ON, "yes")),
    Case("auto-login", ERROR, "/etc/kcpassword is missing", login(AUTO, LOGIN_OFF, "no")),
    Case("auto-login", ERROR, "no user is logged in at boot", login(NONE, LOGIN_OFF, "no")),
    Case("auto-login", WARNING, "no user is logged in at boot", login(NONE, LOGIN_OFF, "no"), ANKA),
    Case("auto-login", ERROR, "but the agent runs as build", login(AUTO, LOGIN_ON, "yes"), {"user": "build"}),
    Case("session", OK, "ci is logged in", {"console": out("ci\n")}),
    Case("session", ERROR, "no user is logged in at the screen", {"console": out("root\n")}),
    Case("session", ERROR, "admin is logged in at the screen", {"console": out("admin\n")}),
    Case("keychain", OK, "stays unlocked", {"keychain": on_stderr("security_open.txt")}),
    Case("keychain", ERROR, "locks itself", {"keychain": on_stderr("security_timeout.txt")}),
    Case("keychain", ERROR, "is locked", {"keychain": on_stderr("security_locked.txt", 36)}),
    Case("keychain", ERROR, "is locked", {"keychain": failed("`security` did not end within 10 s")}),
    Case("keychain", ERROR, "cannot be read", {"keychain": out("no such keychain", 50)}),
    Case("screen-lock", OK, "does not lock", {"screenlock": on_stderr("sysadminctl_screenlock_off.txt")}),
    Case("screen-lock", WARNING, "the screen locks", {"screenlock": on_stderr("sysadminctl_screenlock_on.txt")}),
    Case("local-network", OK, "exempt", {**NEW, "local_network": recorded("defaults_local_network.plist")}),
    Case("local-network", ERROR, "No route to host", {**NEW, "local_network": recorded("defaults_empty.plist")}),
    Case("local-network", UNKNOWN, "only root", {**NEW, "local_network": out("")}, {"root": False}),
    Case("local-network", OK, "root can", {**NEW, "local_network": out("")}, ANKA),
    Case("local-network", OK, "has no Local Network",
         {"sw_vers": recorded("sw_vers_14.txt"), "local_network": out("")}),
    Case("filevault", OK, "is off", {"filevault": recorded("fdesetup_off.txt")}),
    Case("filevault", ERROR, "stops each boot", {"filevault": recorded("fdesetup_on.txt")}),
    Case("updates", OK, "does not install updates", {"updates": recorded("defaults_updates_off.plist")}),
    Case("updates", ERROR, "restarts while VMs run", {"updates": recorded("defaults_updates_on.plist")}),
    Case("updates", ERROR, "restarts while VMs run", {"updates": recorded("defaults_empty.plist")}),
    Case("dhcp-lease-time", OK, "after 600 s", {"sharing": recorded("defaults_sharing_600.plist")}),
    Case("dhcp-lease-time", ERROR, "held for 86400 s", {"sharing": recorded("defaults_empty.plist")}),
    Case("dhcp-lease-time", OK, "reuses", {"sharing": recorded("defaults_empty.plist")}, ANKA),
    Case("dhcp-leases", OK, "addresses are available", {"leases": recorded("dhcpd_leases.txt")}),
    Case("dhcp-leases", WARNING, "runs out", {"leases": leases(210)}),
    Case("dhcp-leases", ERROR, "runs out", {"leases": leases(250)}),
    Case("clock", OK, "is correct", {"sntp": recorded("sntp_good.txt")}),
    Case("clock", WARNING, "off by 2.4 s", {"sntp": recorded("sntp_off.txt")}),
    Case("clock", ERROR, "off by 3600.0 s", {"sntp": out("+3600.000 +/- 0.02 time.apple.com 17.253.14.123\n")}),
    Case("clock", UNKNOWN, "timeout", {"sntp": Reading("", "sntp: Exchange failed: Timeout", 1)}, {}),
    Case("disk-space", OK, "enough free space", {"space": space(300)}),
    Case("disk-space", WARNING, "less than a tenth", {"space": space(20)}),
    Case("disk-space", ERROR, "below host.disk_reserve_mib", {"space": space(1)}),
    Case("file-system", OK, "share their blocks", {"diskutil": recorded("diskutil_apfs.plist")}),
    Case("file-system", ERROR, "hfs cannot clone", {"diskutil": recorded("diskutil_hfs.plist")}),
    Case("file-system", ERROR, "failing", {"diskutil": recorded("diskutil_failing.plist")}),
    Case("spotlight", OK, "does not index", {"spotlight": recorded("mdutil_off.txt")}),
    Case("spotlight", WARNING, "indexes the volume", {"spotlight": recorded("mdutil_on.txt")}),
    Case("time-machine", OK, "not set up",
         backups("tmutil_no_snapshots.txt", "tmutil_no_destination.txt", "tmutil_included.txt")),
    Case("time-machine", OK, "excludes the VMs",
         backups("tmutil_no_snapshots.txt", "tmutil_destination.txt", "tmutil_excluded.txt")),
    Case("time-machine", WARNING, "backs up the VMs",
         backups("tmutil_no_snapshots.txt", "tmutil_destination.txt", "tmutil_included.txt")),
    Case("time-machine", WARNING, "2 local snapshots",
         backups("tmutil_snapshots.txt", "tmutil_no_destination.txt", "tmutil_excluded.txt")),
    Case("leaked-vms", OK, "has its owner", {"processes": recorded("ps_good.txt")}),
    Case("leaked-vms", ERROR, "2 VM processes, but only 1", {"processes": recorded("ps_leaked.txt")}),
    Case("open-files", OK, "enough", files(256, 122_880)),
    Case("open-files", WARNING, "can open only 256", files(256, 122_880), {"in_agent": True}),
    Case("open-files", WARNING, "more than 1024", files(65_536, 1024)),
    Case("sip", OK, "is on", {"csrutil": recorded("csrutil_on.txt")}),
    Case("sip", WARNING, "is off", {"csrutil": recorded("csrutil_off.txt")}),
    Case("tart", OK, "Tart 2.28.5", {"tart": recorded("tart_version.txt")}),
    Case("tart", ERROR, "older than 2.0", {"tart": recorded("tart_version_old.txt")}),
    Case("tart", ERROR, "cannot be run", {"tart": failed("tart: no such program")}),
    Case("anka", OK, "Anka 3.8.6", {"anka": recorded("anka_version.json")}, ANKA),
    Case("anka", UNKNOWN, "unknown version", {"anka": recorded("anka_license_no_eula.json")}, ANKA),
    Case("anka", ERROR, "cannot be run", {"anka": failed("no anka")}, ANKA),
    Case("anka-license", OK, "valid", {"license": recorded("anka_license_valid.json")}, ANKA),
    Case("anka-license", WARNING, "ends in 9 days", {"license": recorded("anka_license_ending.json")},
         {**ANKA, "now_s": 1_795_300_000.0}),
    Case("anka-license", ERROR, "is expired", {"license": recorded("anka_license_expired.json")}, ANKA),
    Case("anka-license", ERROR, "reports no licence", {"license": recorded("anka_license_no_eula.json")}, ANKA),
    Case("service", OK, "keeps the agent", {"service": recorded("launchctl_running.txt")}),
    Case("service", ERROR, "cannot keep", {"service": recorded("launchctl_failing.txt")}),
    Case("service", WARNING, "not loaded", {"service": on_stderr("launchctl_missing.txt", 113)}),
    Case("service", WARNING, "not started by launchd", {"service": out("", 113)}, {"in_agent": True}),
    Case("hearth", OK, "Hearth 0.1.0", {"installed": out("hearth 0.1.0\n")}),
    Case("hearth", OK, "not installed", {"installed": failed("no such program")}),
    Case("hearth", WARNING, "current is 0.2.0", {"installed": out("hearth 0.2.0\n")}),
)  # fmt: skip

LINUX_CASES = (
    Case("kvm", OK, "is usable", {"kvm": out("rw")}, QEMU),
    Case("kvm", WARNING, "/dev/kvm does not exist", {"kvm": out("no")}, QEMU),
    Case("kvm", WARNING, "is not accessible", {"kvm": out("exists, but permission is denied")}, QEMU),
    Case("qemu", OK, "QEMU emulator", {"qemu": out("QEMU emulator version 7.2.22\nCopyright\n")}, QEMU),
    Case("qemu", ERROR, "cannot be run", {"qemu": failed("no qemu")}, QEMU),
    Case("clock", OK, "synchronised", {"timedatectl": out("yes\n")}),
    Case("clock", WARNING, "not synchronised", {"timedatectl": out("no\n")}),
    Case(
        "clock",
        UNKNOWN,
        "not been booted with systemd",
        {"timedatectl": Reading("", "System has not been booted with systemd", 1)},
    ),
    Case("disk-space", ERROR, "below host.disk_reserve_mib", {"space": space(1)}),
    Case("open-files", WARNING, "can open only 1024", files(1024, 1 << 20), {"in_agent": True}),
)
