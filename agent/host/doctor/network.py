"""Checks of the guests' network and of the clock."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from agent.host.doctor.model import ERROR, WARNING, CheckResult, Fix, passed, unknown

if TYPE_CHECKING:
    from agent.host.doctor.model import Readings, Subject

ADDRESSES: Final = 253
"""Addresses for guests in a shared network: a /24 without network, broadcast and host address."""
_WARNING_COUNT: Final = 200
_ERROR_COUNT: Final = 245
DEFAULT_LEASE_S: Final = 86_400
LONG_LEASE_S: Final = 3600
SHORT_LEASE_S: Final = 600
SHARING: Final = "/Library/Preferences/SystemConfiguration/com.apple.InternetSharing.default.plist"

CLOCK_WARNING_S: Final = 1.0
CLOCK_ERROR_S: Final = 30.0
"""Tokens of registries and certificates are valid for minutes, so that this offset is an error."""
_OFFSET: Final = re.compile(r"^\s*([+-]\d+(?:\.\d+)?) \+/- ", re.MULTILINE)
TIME_SERVER: Final = "time.apple.com"


def check_dhcp_lease_time(readings: Readings, subject: Subject) -> CheckResult | None:
    """Check that DHCP leases are short.

    A host that creates a VM every few minutes uses all addresses within the default lease time of one day.
    """
    served = readings["sharing"].plist().get("bootpd", {})
    configured = served.get("DHCPLeaseTimeSecs", DEFAULT_LEASE_S) if isinstance(served, dict) else DEFAULT_LEASE_S
    try:
        lease_s = int(configured)
    except (TypeError, ValueError):
        return unknown(f"DHCPLeaseTimeSecs is {configured!r}")
    evidence = f"DHCPLeaseTimeSecs {lease_s}"
    if subject.hypervisor == "anka":
        return passed("Anka reuses the addresses of its guests", evidence)
    if lease_s <= LONG_LEASE_S:
        return passed(f"addresses of guests are free again after {lease_s} s", evidence)
    message = f"the address of a guest is held for {lease_s} s: after {ADDRESSES} VMs, a new VM gets no address"
    write = ("/usr/bin/defaults", "write", SHARING, "bootpd", "-dict", "DHCPLeaseTimeSecs", "-int", str(SHORT_LEASE_S))
    return CheckResult(
        ERROR if subject.for_tart else WARNING, message, evidence, "shorten the DHCP leases", Fix((write,))
    )


def check_dhcp_leases(readings: Readings, subject: Subject) -> CheckResult | None:
    """Check that addresses are available for new guests."""
    held = count_held_leases(readings["leases"].out, subject.now_s)
    evidence = f"{held} of about {ADDRESSES} addresses held"
    if held < _WARNING_COUNT:
        return passed("addresses are available for guests", evidence)
    remedy = "drain this host, remove /var/db/dhcpd_leases and uncordon it; then fix the check dhcp-lease-time"
    return CheckResult(
        ERROR if held >= _ERROR_COUNT else WARNING, "the network of the guests runs out of addresses", evidence, remedy
    )


def count_held_leases(text: str, now_s: float) -> int:
    """Return how many addresses in the lease file of bootpd are held now. Its times are seconds in hexadecimal."""
    held = set()
    for block in re.findall(r"\{([^}]*)\}", text):
        fields = dict(line.strip().split("=", 1) for line in block.splitlines() if "=" in line)
        try:
            if int(fields.get("lease", "0"), 16) > now_s:
                held.add(fields.get("ip_address"))
        except ValueError:
            continue
    return len(held)


def check_clock(readings: Readings, _: Subject) -> CheckResult | None:
    """Check that the clock agrees with a time server."""
    found = _OFFSET.search(readings["sntp"].out)
    if found is None:
        output = readings["sntp"].text[-200:] or "no output"
        return unknown(f"sntp reports no time of {TIME_SERVER}: {output}", "allow UDP port 123 to the time server")
    offset_s = float(found[1])
    evidence = f"{offset_s:+.3f} s against {TIME_SERVER}"
    if abs(offset_s) < CLOCK_WARNING_S:
        return passed("the clock is correct", evidence)
    fix = Fix((("/usr/sbin/systemsetup", "-setusingnetworktime", "on"), ("/usr/bin/sntp", "-sS", TIME_SERVER)))
    severity = ERROR if abs(offset_s) >= CLOCK_ERROR_S else WARNING
    return CheckResult(
        severity, f"the clock is off by {abs(offset_s):.1f} s", evidence, "set the clock from the network", fix
    )


def check_clock_on_linux(readings: Readings, _: Subject) -> CheckResult | None:
    """Check that a time service keeps the clock correct."""
    match readings["timedatectl"].out.strip():
        case "yes":
            return passed("the clock is synchronised with the network", "NTPSynchronized yes")
        case "no":
            fix = Fix((("timedatectl", "set-ntp", "true"),))
            return CheckResult(
                WARNING, "the clock is not synchronised", "NTPSynchronized no", "enable time synchronisation", fix
            )
        case _:
            return unknown(f"timedatectl does not report it: {readings['timedatectl'].text[:80] or 'no output'}")
