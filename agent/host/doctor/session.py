"""Checks of the user's session and of privacy: what Tart's guests need, and what keeps a Mac from coming back."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from agent.host.doctor.model import ERROR, WARNING, CheckResult, Fix, Reading, passed, unknown

if TYPE_CHECKING:
    from agent.host.doctor.model import Readings, Subject

GUEST_NETWORKS: Final = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
LOCAL_NETWORK: Final = "com.apple.network.local-network"
LOCAL_NETWORK_KEYS: Final = ("AllowedEthernetLocalNetworkAddresses", "AllowedWiFiLocalNetworkAddresses")
_FIRST_WITH_LOCAL_NETWORK: Final = 15
_LOCKS: Final = re.compile(r"lock-on-sleep|timeout=(\d+)s")


def auto_login(readings: Readings, subject: Subject) -> CheckResult | None:
    """Judge whether the right user is logged in at boot. The name alone is not enough: the password has to be kept."""
    user = readings["loginwindow"].plist().get("autoLoginUser")
    wanted = subject.user if subject.for_tart else "USER"
    remedy = f"run `sudo sysadminctl -autologin set -userName {wanted} -password -`, then restart"
    severity = ERROR if subject.for_tart else WARNING
    told = readings["autologin"].text
    if not user:
        return CheckResult(severity, "nobody is logged in at boot", told[-200:], remedy)
    if readings["kcpassword"].out != "yes":
        message = f"{user} is named for automatic login, but /etc/kcpassword is missing: the login fails"
        return CheckResult(severity, message, told[-200:], remedy)
    if subject.for_tart and user != subject.user:
        message = f"{user} is logged in at boot, but the agent is of {subject.user}"
        return CheckResult(ERROR, message, f"autoLoginUser {user}", remedy)
    return passed(f"{user} is logged in at boot", f"autoLoginUser {user}")


def console(readings: Readings, subject: Subject) -> CheckResult | None:
    """Judge whether the session that Tart needs is there."""
    if not subject.for_tart:
        return None
    user = readings["console"].out.strip()
    if user == subject.user:
        return passed(f"{user} is logged in at the screen")
    there = "nobody" if user in ("root", "") else user
    message = f"{there} is logged in at the screen, but the agent is of {subject.user}"
    return CheckResult(
        ERROR, message, f"/dev/console of {user}", f"log in as {subject.user}, by automatic login for good"
    )


def keychain(readings: Readings, subject: Subject) -> CheckResult | None:
    """Judge whether the login keychain is open, and stays so. A locked one asks at the screen, and nobody answers."""
    if not subject.for_tart:
        return None
    reading = readings["keychain"]
    path = f"{subject.home}/Library/Keychains/login.keychain-db"
    unlock = f"log in at the screen as {subject.user}, or run `security unlock-keychain {path}`"
    if reading.error or "interaction is not allowed" in reading.text:
        evidence = (reading.error or reading.text)[-200:]
        return CheckResult(
            ERROR, "the login keychain is locked: guests of macOS 15 and later cannot start", evidence, unlock
        )
    if reading.exit_code:
        return CheckResult(ERROR, "the login keychain cannot be read", reading.text[-200:], unlock)
    if "no-timeout" not in reading.text and _LOCKS.search(reading.text):
        fix = Fix((("/usr/bin/security", "set-keychain-settings", path),), root=False)
        return CheckResult(
            ERROR, "the login keychain locks itself after a time", reading.text[-200:], "let it stay open", fix
        )
    return passed("the login keychain is open, and stays so", "no-timeout")


def screen_lock(readings: Readings, subject: Subject) -> CheckResult | None:
    """Judge whether the screen locks itself."""
    text = readings["screenlock"].text
    if "screenLock is off" in text:
        return passed("the screen does not lock")
    if "screenLock delay" not in text:
        return unknown("sysadminctl does not tell whether the screen locks")
    remedy = f"run `sysadminctl -screenLock off -password -` as {subject.user}"
    return CheckResult(
        WARNING, "the screen locks itself, which needs a password after a look at it", text[-100:], remedy
    )


def local_network(readings: Readings, subject: Subject) -> CheckResult | None:
    """Judge whether the agent may reach its guests: a user's launchd job is denied without being asked."""
    version = _macos_major(readings["sw_vers"])
    if version is not None and version < _FIRST_WITH_LOCAL_NETWORK:
        return passed("this macOS asks nobody for local addresses")
    if not subject.for_tart:
        return passed("root may reach local addresses")
    if not subject.root:
        return unknown("only root can read which networks are exempt", "run `sudo hearth doctor`")
    allowed = readings["local_network"].plist()
    missing = [key for key in LOCAL_NETWORK_KEYS if not allowed.get(key)]
    if not missing:
        return passed(
            "guests' networks are exempt from Local Network privacy", ", ".join(allowed[LOCAL_NETWORK_KEYS[0]])
        )
    fix = Fix(
        tuple(("/usr/bin/defaults", "write", LOCAL_NETWORK, key, "-array", *GUEST_NETWORKS) for key in missing),
        restart=True,
    )
    message = "probes over the network fail with `No route to host`: Local Network privacy denies a user's launchd jobs"
    return CheckResult(ERROR, message, f"{', '.join(missing)} not set", "exempt private networks, then restart", fix)


def filevault(readings: Readings, _: Subject) -> CheckResult | None:
    """Judge whether the Mac comes back from a restart without anybody's help."""
    text = readings["filevault"].text
    if "FileVault is Off" in text:
        return passed("FileVault is off")
    if "FileVault is On" not in text:
        return unknown(f"fdesetup says {text[:100]!r}")
    message = "FileVault holds every boot until somebody types a password, and turns automatic login off"
    return CheckResult(ERROR, message, text[-200:], "run `sudo fdesetup disable`")


def sip(readings: Readings, _: Subject) -> CheckResult | None:
    """Judge whether System Integrity Protection is on: nothing here needs it off."""
    text = readings["csrutil"].text
    if "status: enabled" in text:
        return passed("System Integrity Protection is on")
    remedy = "run `csrutil enable` in recoveryOS"
    return CheckResult(WARNING, "System Integrity Protection is off, or partly", text[:200], remedy)


def _macos_major(reading: Reading) -> int | None:
    found = re.search(r"ProductVersion:\s*(\d+)", reading.out)
    return int(found[1]) if found else None
