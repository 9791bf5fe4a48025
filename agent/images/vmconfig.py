"""The two small JSON documents of an image: Tart's VM configuration and the OCI configuration."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from agent.images.manifest import DISK_FORMAT_LABEL

Os = Literal["linux", "darwin"]
Arch = Literal["amd64", "arm64"]


@dataclass(frozen=True, slots=True)
class Hardware:
    """The hardware that a pushed image requests for its VMs."""

    os: Os = "linux"
    arch: Arch = "amd64"
    cpus: int = 2
    memory_mib: int = 2048


def vm_config(hardware: Hardware, *, seed: str) -> bytes:
    """Return config.json. The MAC address is derived from `seed`, so the same disk always gives the same image."""
    memory_bytes = hardware.memory_mib << 20
    return _json(
        {
            "version": 1,
            "os": hardware.os,
            "arch": hardware.arch,
            "cpuCountMin": hardware.cpus,
            "cpuCount": hardware.cpus,
            "memorySizeMin": memory_bytes,
            "memorySize": memory_bytes,
            "macAddress": _mac_address(seed),
            "display": {"width": 1024, "height": 768},
            "diskFormat": "raw",
        }
    )


def oci_config(hardware: Hardware) -> bytes:
    """Return the OCI configuration. It names system and architecture, so clients need no other blob for them."""
    labels = {DISK_FORMAT_LABEL: "raw"}
    return _json({"architecture": hardware.arch, "config": {"Labels": labels}, "os": hardware.os})


def _mac_address(seed: str) -> str:
    octets = bytearray(hashlib.sha256(seed.encode()).digest()[:6])
    octets[0] = octets[0] & 0xFC | 0x02  # locally administered, unicast
    return octets.hex(":")


def _json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
