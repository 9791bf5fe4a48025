"""VM names that carry identity: `<prefix>-<pool>-<ulid>`, parsable back.

A hypervisor's list alone separates our VMs from those of other owners, and gives the pool of each. Orchard's on-disk
names work in the same way (cirruslabs/orchard, internal/worker/ondiskname.go)."""

from __future__ import annotations

import re
from dataclasses import dataclass

PREFIX = "hearth"
POOL_PATTERN = r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?"
# Crockford base 32 in lower case: hypervisors differ in case handling, so names never rely on it.
_ULID = r"[0-9a-hjkmnp-tv-z]{26}"


@dataclass(frozen=True, slots=True)
class VmName:
    """The parts of one of our VM names."""

    prefix: str
    pool: str
    ulid: str

    def __str__(self) -> str:
        return f"{self.prefix}-{self.pool}-{self.ulid}"


def vm_name(pool: str, ulid: str, *, prefix: str = PREFIX) -> str:
    """Return the name of a new VM of `pool`. `ulid` is any 26-character ULID; its case is folded."""
    return str(VmName(prefix, pool, ulid.lower()))


def parse(name: str, *, prefix: str = PREFIX) -> VmName | None:
    """Return the parts of `name`, or None if it is not ours: another prefix, or no pool or ULID in it."""
    head = f"{prefix}-"
    if not name.startswith(head):
        return None
    pool, dash, ulid = name.removeprefix(head).rpartition("-")
    if dash and re.fullmatch(POOL_PATTERN, pool) and re.fullmatch(_ULID, ulid):
        return VmName(prefix, pool, ulid)
    return None
