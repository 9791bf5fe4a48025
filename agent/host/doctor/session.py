"""Checks of the login session, privacy and security: requirements of Tart, and of an unattended restart."""

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


def check_auto_login(readings: Readings, subject: Subject) -> CheckResult | None:
    """Check that the user of the agent is logged in at boot. It needs the user name and the stored password."""
    user = readings["loginwindow"].plist().get("autoLoginUser")
    account = subject.user if subject.for_tart else "USER"
    remedy = f"run `sudo sysadminctl -autologin set -userName {account} -password -`, then restart"
    severity = ERROR if subject.for_tart else WARNING
    evidence = readings["autologin"].text[-200:]
    if not user:
        return CheckResult(severity, "automatic login is off: no user is logged in at boot", evidence, remedy)
    if readings["kcpassword"].out != "yes":
        message = f"automatic login of {user} fails, because /etc/kcpassword is missing"
        return CheckResult(severity, message, evidence, remedy)
    if subject.for_tart and user != subject.user:
        message = f"{user} is logged in at boot, but the agent runs as {subject.user}"
        return CheckResult(ERROR, message, f"autoLoginUser {user}", remedy)
    return passed(f"{user} is logged in at boot", f"autoLoginUser {user}")


def check_console(readings: Readings, subject: Subject) -> CheckResult | None:
    """Check that the user of the agent is logged in at the screen, as Tart requires."""
    if not subject.for_tart:
        return None
    user = readings["console"].out.strip()
    if user == subject.user:
        return passed(f"{user} is logged in at the screen")
    shown = "no user" if user in ("root", "") else user
    message = f"{shown} is logged in at the screen, but the agent runs as {subject.user}"
    return CheckResult(
        ERROR, message, f"/dev/console belongs to {user}", f"log in as {subject.user}, and set up automatic login"
    )


def check_keychain(readings: Readings, subject: Subject) -> CheckResult | None:
    """Check that the login keychain is unlocked and stays so.

    macOS prompts for the password of a locked keychain at the screen, where no user is present.
    """
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
            ERROR, "the login keychain locks itself after some time", reading.text[-200:], "disable its timeout", fix
        )
    return passed("the login keychain stays unlocked", "no-timeout")


def check_screen_lock(readings: Readings, subject: Subject) -> CheckResult | None:
    """Check that the screen does not lock."""
    text = readings["screenlock"].text
    if "screenLock is off" in text:
        return passed("the screen does not lock")
    if "screenLock delay" not in text:
        return unknown("sysadminctl does not report whether the screen locks")
    remedy = f"run `sysadminctl -screenLock off -password -` as {subject.user}"
    return CheckResult(WARNING, "the screen locks: working at it needs a password", text[-100:], remedy)


def check_local_network(readings: Readings, subject: Subject) -> CheckResult | None:
    """Check that the agent can connect to guests. macOS denies it to launchd jobs of a user without a prompt."""
    version = _macos_major(readings["sw_vers"])
    if version is not None and version < _FIRST_WITH_LOCAL_NETWORK:
        return passed("this macOS has no Local Network privacy")
    if not subject.for_tart:
        return passed("root can connect to local addresses")
    if not subject.root:
        return unknown("only root can read the exempt networks", "run `sudo hearth doctor`")
    allowed = readings["local_network"].plist()
    missing = [key for key in LOCAL_NETWORK_KEYS if not allowed.get(key)]
    if not missing:
        return passed(
            "networks of the guests are exempt from Local Network privacy", ", ".join(allowed[LOCAL_NETWORK_KEYS[0]])
        )
    fix = Fix(
        tuple(("/usr/bin/defaults", "write", LOCAL_NETWORK, key, "-array", *GUEST_NETWORKS) for key in missing),
        restart=True,
    )
    message = "probes over the network fail with `No route to host`: Local Network privacy denies a user's launchd jobs"
    return CheckResult(
        ERROR, message, f"{', '.join(missing)} not set", "exempt the private networks, then restart the Mac", fix
    )


def check_filevault(readings: Readings, _: Subject) -> CheckResult | None:
    """Check that the Mac restarts unattended."""
    text = readings["filevault"].text
    if "FileVault is Off" in text:
        return passed("FileVault is off")
    if "FileVault is On" not in text:
        return unknown(f"fdesetup reports {text[:100]!r}")
    message = "FileVault stops each boot until a user types a password, and disables automatic login"
    return CheckResult(ERROR, message, text[-200:], "run `sudo fdesetup disable`")


def check_sip(readings: Readings, _: Subject) -> CheckResult | None:
    """Check that System Integrity Protection is on. Hearth does not need it off."""
    text = readings["csrutil"].text
    if "status: enabled" in text:
        return passed("System Integrity Protection is on")
    remedy = "run `csrutil enable` in recoveryOS"
    return CheckResult(WARNING, "System Integrity Protection is off or partly off", text[:200], remedy)


def _macos_major(reading: Reading) -> int | None:
    found = re.search(r"ProductVersion:\s*(\d+)", reading.out)
    return int(found[1]) if found else None
