"""Addresses that a server gives: redirects, upload locations, token servers. They are hostile until checked.

A registry must not make the agent talk to services that only this host can reach, and must not end encryption. `Zone`
names the addresses of such services.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Callable

    AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]

_MAX_LENGTH: Final = 8 << 10
_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_PRINTABLE: Final = re.compile(r"[!-~]*")
_RESOLVE_TIMEOUT_S: Final = 10.0


class BadAddressError(ValueError):
    """An address that is not a usable http or https URL."""


class Zone(StrEnum):
    """A range of addresses that only this host, its link or its cloud provider can reach."""

    LOOPBACK = "loopback"
    LINK_LOCAL = "link-local"
    METADATA = "cloud metadata"


_METADATA: Final = frozenset(
    ipaddress.ip_address(text) for text in ("169.254.169.254", "169.254.170.2", "100.100.100.200", "fd00:ec2::254")
)
"""Metadata services of AWS and its containers, Azure, Google, Oracle and Alibaba."""


class ForbiddenAddressError(OSError):
    """A connection to a zone that the server may not send this host to."""


def parse_address(text: str, base: URL | None = None) -> URL:
    """Parse a URL from a header, relative to `base` if one is given. Raises `BadAddressError` with the reason."""
    if len(text) > _MAX_LENGTH:
        raise BadAddressError(f"it is longer than {_MAX_LENGTH} characters")
    if not text or _PRINTABLE.fullmatch(text) is None:
        raise BadAddressError("it is empty or has characters other than printable ASCII")
    try:
        url = URL(text, encoded=True)
        url = base.join(url) if base is not None else url
        parts = urlsplit(str(url))
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise BadAddressError(str(error)[:200]) from None
    if url.scheme not in ("http", "https"):
        raise BadAddressError("its scheme is neither http nor https")
    if parts.username is not None or parts.password is not None:
        raise BadAddressError("it has a user name or a password")
    if port == 0 or not _is_host(host):
        raise BadAddressError("its host or port is invalid")
    return url


def zone_of(address: str) -> Zone | None:
    """Return the zone of an IP address in text form; None for other addresses and for host names."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return Zone.LOOPBACK if address.rstrip(".").lower() == "localhost" else None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    parsed = mapped or parsed
    if parsed in _METADATA:
        return Zone.METADATA
    if parsed.is_loopback or parsed.is_unspecified:
        return Zone.LOOPBACK
    return Zone.LINK_LOCAL if parsed.is_link_local else None


async def zones_of_host(host: str) -> frozenset[Zone]:
    """Return the zones of all addresses of a host; empty if its name cannot be resolved."""
    try:
        async with asyncio.timeout(_RESOLVE_TIMEOUT_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError):
        return frozenset()
    return frozenset(zone for info in found if (zone := zone_of(str(info[4][0]))))


def socket_factory(allowed: frozenset[Zone]) -> Callable[[AddressInfo], socket.socket]:
    """Return a function that makes sockets for addresses outside all zones, or in one of `allowed`.

    The check is made on the address that is connected to, so a host name cannot be resolved to another one later.
    """

    def make(info: AddressInfo) -> socket.socket:
        zone = zone_of(str(info[4][0]))
        if zone is not None and zone not in allowed:
            raise ForbiddenAddressError(f"{info[4][0]} is a {zone} address")
        return socket.socket(info[0], info[1], info[2])

    return make


def _is_host(text: str) -> bool:
    # Digits and dots are an IPv4 address in full form, or nothing: `127.1` is one that resolvers complete.
    if len(text) <= 253 and _HOST.fullmatch(text) and text.strip("0123456789."):
        return True
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True
