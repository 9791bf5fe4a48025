"""Checks of the guests' network and of the clock."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from agent.host.doctor.model import ERROR, WARNING, CheckResult, Fix, passed, unknown

if TYPE_CHECKING:
    from agent.host.doctor.model import Readings, Subject

ADDRESSES: Final = 253
"""Addresses of a shared network: a /24 less network, broadcast and the host."""
_NEARLY_ALL: Final = 200
_ALL: Final = 245
DEFAULT_LEASE_S: Final = 86_400
LONG_LEASE_S: Final = 3600
SHORT_LEASE_S: Final = 600
SHARING: Final = "/Library/Preferences/SystemConfiguration/com.apple.InternetSharing.default.plist"

CLOCK_WARNING_S: Final = 1.0
CLOCK_ERROR_S: Final = 30.0
"""Tokens of registries and certificates count in minutes; a clock this far off goes on."""
_OFFSET: Final = re.compile(r"^\s*([+-]\d+(?:\.\d+)?) \+/- ", re.MULTILINE)
TIME_SERVER: Final = "time.apple.com"


def dhcp_lease_time(readings: Readings, subject: Subject) -> CheckResult | None:
    """Judge whether addresses come back in time: a host that makes a VM every few minutes uses up a day's supply."""
    served = readings["sharing"].plist().get("bootpd", {})
    told = served.get("DHCPLeaseTimeSecs", DEFAULT_LEASE_S) if isinstance(served, dict) else DEFAULT_LEASE_S
    try:
        lease_s = int(told)
    except (TypeError, ValueError):
        return unknown(f"DHCPLeaseTimeSecs is {told!r}")
    evidence = f"DHCPLeaseTimeSecs {lease_s}"
    if subject.hypervisor == "anka":
        return passed("Anka gives guests their address again", evidence)
    if lease_s <= LONG_LEASE_S:
        return passed(f"guests' addresses come back after {lease_s} s", evidence)
    message = f"a guest's address is held for {lease_s} s: after {ADDRESSES} VMs no new one gets any"
    write = ("/usr/bin/defaults", "write", SHARING, "bootpd", "-dict", "DHCPLeaseTimeSecs", "-int", str(SHORT_LEASE_S))
    return CheckResult(ERROR if subject.for_tart else WARNING, message, evidence, "make leases short", Fix((write,)))


def dhcp_leases(readings: Readings, subject: Subject) -> CheckResult | None:
    """Judge whether addresses are running out now."""
    held = held_leases(readings["leases"].out, subject.now_s)
    evidence = f"{held} of about {ADDRESSES} addresses held"
    if held < _NEARLY_ALL:
        return passed("addresses are left for guests", evidence)
    remedy = "drain this host, remove /var/db/dhcpd_leases, uncordon it; and see to the DHCP lease time"
    return CheckResult(
        ERROR if held >= _ALL else WARNING, "the guests' network runs out of addresses", evidence, remedy
    )


def held_leases(text: str, now_s: float) -> int:
    """Return how many addresses of bootpd's file are held now. Its times are seconds in hexadecimal."""
    held = set()
    for block in re.findall(r"\{([^}]*)\}", text):
        fields = dict(line.strip().split("=", 1) for line in block.splitlines() if "=" in line)
        try:
            if int(fields.get("lease", "0"), 16) > now_s:
                held.add(fields.get("ip_address"))
        except ValueError:
            continue
    return len(held)


def clock(readings: Readings, _: Subject) -> CheckResult | None:
    """Judge whether the clock is right, by a time server's word."""
    found = _OFFSET.search(readings["sntp"].out)
    if found is None:
        told = readings["sntp"].text[-200:] or "sntp said nothing"
        return unknown(f"{TIME_SERVER} does not tell the time: {told}", "let UDP port 123 through")
    offset_s = float(found[1])
    evidence = f"{offset_s:+.3f} s against {TIME_SERVER}"
    if abs(offset_s) < CLOCK_WARNING_S:
        return passed("the clock is right", evidence)
    fix = Fix((("/usr/sbin/systemsetup", "-setusingnetworktime", "on"), ("/usr/bin/sntp", "-sS", TIME_SERVER)))
    severity = ERROR if abs(offset_s) >= CLOCK_ERROR_S else WARNING
    return CheckResult(severity, f"the clock is off by {abs(offset_s):.1f} s", evidence, "set it by the network", fix)


def clock_on_linux(readings: Readings, _: Subject) -> CheckResult | None:
    """Judge whether the clock is kept right."""
    match readings["timedatectl"].out.strip():
        case "yes":
            return passed("the clock is kept by the network", "NTPSynchronized yes")
        case "no":
            fix = Fix((("timedatectl", "set-ntp", "true"),))
            return CheckResult(WARNING, "nothing keeps the clock right", "NTPSynchronized no", "turn time sync on", fix)
        case _:
            return unknown(f"timedatectl does not tell: {readings['timedatectl'].text[:80] or 'it said nothing'}")
