"""Checks of programs: versions, licence, updates, the launchd service, and leaked VM processes."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from agent.host.doctor.model import ERROR, WARNING, CheckResult, Fix, passed, unknown
from agent.host.service.launchctl import parse_job

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.host.doctor.model import Reading, Readings, Subject

OLDEST_MACOS: Final = 14
OLDEST_TART: Final = (2, 0)
OLDEST_ANKA: Final = (3, 0)
ENOUGH_FILES: Final = 10_240
LICENSE_WARNING_DAYS: Final = 14
UPDATES: Final = "/Library/Preferences/com.apple.SoftwareUpdate"
_VM_PROCESS: Final = "com.apple.Virtualization.VirtualMachine"
_OWNER_PROCESS: Final = re.compile(
    r"/tart (?:--\S+ )*run |^tart run |ankahv|anka_vm|/(?:utm|limactl|vfkit|lume|prlctl)\b"
)
_BETA: Final = re.compile(r"[a-z]$")


def check_macos(readings: Readings, _: Subject) -> CheckResult | None:
    """Check that this macOS is supported, and not a beta."""
    fields = dict(re.findall(r"^(\w+):\s*(.+)$", readings["sw_vers"].out, re.MULTILINE))
    version, build = fields.get("ProductVersion", ""), fields.get("BuildVersion", "")
    if not version[:1].isdigit():
        return unknown("sw_vers reports no version")
    release = f"macOS {version} ({build})"
    if int(version.partition(".")[0]) < OLDEST_MACOS:
        return CheckResult(
            ERROR, f"{release} is older than {OLDEST_MACOS}", release, "drain this host and update macOS"
        )
    if _BETA.search(build):
        return CheckResult(WARNING, f"{release} is a beta", release, "install a released macOS")
    return passed(release)


def check_tart(readings: Readings, subject: Subject) -> CheckResult | None:
    """Check that Tart is installed and recent enough."""
    if not subject.for_tart:
        return None
    reading, remedy = readings["tart"], "run `brew install cirruslabs/cli/tart`"
    if reading.error:
        return CheckResult(ERROR, "tart cannot be run", reading.error, remedy)
    return _check_version("Tart", reading.text, OLDEST_TART, "run `brew upgrade cirruslabs/cli/tart`")


def check_anka(readings: Readings, subject: Subject) -> CheckResult | None:
    """Check that Anka is installed and recent enough."""
    if subject.hypervisor != "anka":
        return None
    if readings["anka"].error:
        return CheckResult(ERROR, "anka cannot be run", readings["anka"].error, "install the Anka package")
    version = str(_parse_body(readings["anka"]).get("version", ""))
    return _check_version("Anka", version, OLDEST_ANKA, "install the newest Anka package")


def check_anka_license(readings: Readings, subject: Subject) -> CheckResult | None:
    """Check that the licence of Anka is valid and does not end soon."""
    if subject.hypervisor != "anka":
        return None
    body = _parse_body(readings["license"])
    status, product = body.get("status"), body.get("license_type") or body.get("product") or ""
    remedy = "run `sudo anka license accept-eula` and `sudo anka license activate KEY`"
    if not body:
        return CheckResult(ERROR, "Anka reports no licence", readings["license"].text[:200], remedy)
    if status != "valid":
        return CheckResult(ERROR, f"the licence of Anka is {status}: no VM can start", f"{product} {status}", remedy)
    days = _days_left(str(body.get("expires", "")), subject.now_s)
    evidence = f"{product}, valid" + (f", {days} days left" if days is not None else "")
    if days is not None and days <= LICENSE_WARNING_DAYS:
        remedy = "connect this host to the licence server of Anka, which renews it, or activate a new key"
        return CheckResult(WARNING, f"the licence of Anka ends in {days} days", evidence, remedy)
    return passed("the licence of Anka is valid", evidence)


def check_hearth(readings: Readings, subject: Subject) -> CheckResult | None:
    """Check that the installed version is the running one."""
    installed = readings["installed"]
    if installed.error:
        return passed(f"Hearth {subject.version}, not installed under /opt/hearth")
    version = installed.out.strip().removeprefix("hearth ")
    if version == subject.version:
        return passed(f"Hearth {version}")
    message = f"/opt/hearth/current is {version}, but this is {subject.version}"
    return CheckResult(
        WARNING, message, installed.out.strip(), "run `hearth service restart`, or use the installed `hearth`"
    )


def check_service(readings: Readings, subject: Subject) -> CheckResult | None:
    """Check that launchd keeps the agent running."""
    reading = readings["service"]
    if reading.exit_code:
        if subject.in_agent:
            return CheckResult(WARNING, "this agent was not started by launchd", "", "run `hearth service install`")
        return CheckResult(
            WARNING, "Hearth is not loaded in launchd", reading.text[-120:], "run `hearth service install`"
        )
    job = parse_job(reading.out)
    evidence = f"{job.state}, {job.runs} runs, last exit {job.last_exit or 'unknown'}"
    if job.pid is None:
        remedy = "read launchd.err.log (`hearth service status` shows its path), and run `hearth config check`"
        return CheckResult(ERROR, "launchd cannot keep the agent running", evidence, remedy)
    return passed("launchd keeps the agent running", evidence)


def check_updates(readings: Readings, _: Subject) -> CheckResult | None:
    """Check that macOS does not restart the host for an update."""
    found = readings["updates"].plist()
    on = [key for key in ("AutomaticallyInstallMacOSUpdates", "AutomaticDownload") if found.get(key, True)]
    if not on:
        return passed("macOS does not install updates automatically")
    fix = Fix(tuple(("/usr/bin/defaults", "write", UPDATES, key, "-bool", "false") for key in on))
    message = (
        "macOS installs updates automatically, and restarts while VMs run"
        if on[0] != "AutomaticDownload"
        else "macOS downloads updates automatically"
    )
    severity = ERROR if on[0] != "AutomaticDownload" else WARNING
    return CheckResult(
        severity, message, ", ".join(f"{key} {found.get(key, 'not set')}" for key in on), "disable it", fix
    )


def check_leaked_vms(readings: Readings, _: Subject) -> CheckResult | None:
    """Check for leaked VM processes. They hold slots of macOS until they are killed or the Mac restarts."""
    lines = [line.strip() for line in readings["processes"].out.splitlines()]
    machines = [line for line in lines if _VM_PROCESS in line]
    owners = [line for line in lines if _OWNER_PROCESS.search(line.split(maxsplit=3)[-1])]
    if len(machines) <= len(owners):
        return passed("each VM process has its owner", f"{len(machines)} VM processes, {len(owners)} owners")
    pids = " ".join(line.split()[0] for line in machines)
    message = (
        f"{len(machines)} VM processes, but only {len(owners)} programs that own one: the others hold slots of macOS"
    )
    remedy = "drain this host; then end the remaining processes with `sudo kill -9 PID`, or restart the Mac"
    return CheckResult(ERROR, message, f"processes {pids}", remedy)


def check_file_limits(readings: Readings, subject: Subject) -> CheckResult | None:
    """Check that the agent can open enough files, sockets and pipes."""
    own, system = readings["own_files"].out.strip(), readings["system_files"].out.strip()
    if not (own.lstrip("-").isdigit() and system.isdigit()):
        return unknown("the limits of open files cannot be read")
    evidence = f"own limit {own}, limit per process {system}"
    if int(system) < ENOUGH_FILES:
        remedy = f"raise the limit of the system to {ENOUGH_FILES} or more"
        return CheckResult(WARNING, f"no process can open more than {system} files", evidence, remedy)
    if subject.in_agent and 0 <= int(own) < ENOUGH_FILES:
        remedy = "run the agent with `hearth service install`, or with a higher `ulimit -n`"
        return CheckResult(WARNING, f"the agent can open only {own} files", evidence, remedy)
    return passed("enough files can be opened", evidence)


def check_kvm(readings: Readings, subject: Subject) -> CheckResult | None:
    """Check that KVM is usable. Without it VMs are emulated, which is many times slower."""
    if subject.hypervisor != "qemu":
        return None
    match readings["kvm"].out:
        case "rw":
            return passed("/dev/kvm is usable")
        case "no":
            remedy = "enable virtualization in the firmware, or load the kvm module"
            return CheckResult(
                WARNING, "/dev/kvm does not exist: VMs are emulated, which is many times slower", "", remedy
            )
    remedy = "add the user of the agent to the group kvm, then restart the agent"
    return CheckResult(
        WARNING, "/dev/kvm is not accessible: VMs are emulated, which is many times slower", readings["kvm"].out, remedy
    )


def check_qemu(readings: Readings, subject: Subject) -> CheckResult | None:
    """Check that QEMU is installed."""
    if subject.hypervisor != "qemu":
        return None
    if readings["qemu"].error:
        return CheckResult(ERROR, "QEMU cannot be run", readings["qemu"].error, "run scripts/setup")
    return passed(readings["qemu"].out.splitlines()[0] if readings["qemu"].out else "QEMU is installed")


def _check_version(name: str, text: str, oldest: tuple[int, int], remedy: str) -> CheckResult:
    found = re.search(r"(\d+)\.(\d+)(\S*)", text)
    if found is None:
        return unknown(f"{name} reports the unknown version {text[:60]!r}")
    version = f"{name} {found[0]}"
    if (int(found[1]), int(found[2])) < oldest:
        return CheckResult(ERROR, f"{version} is older than {oldest[0]}.{oldest[1]}", version, remedy)
    return passed(version)


def _parse_body(reading: Reading) -> Mapping[str, Any]:
    """Return the body of the last JSON line of `anka`; empty if there is none."""
    for line in reversed(reading.out.splitlines()):
        try:
            body = json.loads(line)["body"]
        except (ValueError, KeyError, TypeError):
            continue
        return body if isinstance(body, dict) else {}
    return {}


def _days_left(expires: str, now_s: float) -> int | None:
    for layout in ("%d-%b-%Y", "%Y-%m-%d"):
        try:
            at = datetime.strptime(expires, layout).replace(tzinfo=UTC)
        except ValueError:
            continue
        return int((at.timestamp() - now_s) // 86400)
    return None
