"""Proxies of the environment: `http_proxy`, `https_proxy`, `all_proxy`, `no_proxy`, and the system's on a Mac.

A proxy may be written without a scheme. `no_proxy` holds host names, which include their subdomains, IP addresses, CIDR
ranges, each with an optional port, and `*`. Loopback addresses are never reached through a proxy, as in Go's clients.
"""

from __future__ import annotations

import ipaddress
import os
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from yarl import URL

from agent.images.errors import RegistryError
from agent.images.sources.addresses import BadAddressError, Zone, parse_address, zone_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_SYSTEM: Final = "the system's settings"


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and the variable that names it. `str()` has no password."""

    url: URL = field(repr=False)
    variable: str

    def __str__(self) -> str:
        return f"{self.url.with_user(None)} of {self.variable}".replace("/ of", " of")


def proxy_for(url: URL, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """Return the proxy for a request; None for a direct one. Raises `RegistryError` for a proxy that cannot be used."""
    host, port = url.host or "", url.port or 0
    if zone_of(host) is Zone.LOOPBACK:
        return None
    found = _configured(url.scheme, environment)
    if found is None or _is_excepted(host, port, environment):
        return None
    return _parse(*found)


def _configured(scheme: str, environment: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the variable and the text of the proxy for a scheme."""
    for name in (f"{scheme}_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            if text := environment.get(variable, "").strip():
                return variable, text
    text = urllib.request.getproxies().get(scheme, "") if environment is os.environ else ""
    return (_SYSTEM, text) if text else None


def _parse(variable: str, text: str) -> Proxy:
    shown = text.rpartition("@")[2]
    try:
        url = URL(text if "://" in text else f"http://{text}")
        parse_address(str(url.with_user(None)))
    except ValueError as error:
        if "://" in text and text.lower().startswith("socks"):
            raise RegistryError(
                f"{variable} names the SOCKS proxy {shown}, and SOCKS proxies are not supported",
                remedy="set it to an http or https proxy, or add the registry to no_proxy",
            ) from None
        reason = str(error) if isinstance(error, BadAddressError) else "it is not a URL"
        raise RegistryError(
            f"{variable} names the invalid proxy {shown}: {reason}", remedy="write host:port or http://host:port"
        ) from None
    return Proxy(url, variable)


def _is_excepted(host: str, port: int, environment: Mapping[str, str]) -> bool:
    text = environment.get("no_proxy") or environment.get("NO_PROXY")
    if text is None:
        return environment is os.environ and bool(urllib.request.proxy_bypass(host))
    return any(_matches(entry, host.rstrip(".").lower(), port) for entry in text.replace(",", " ").split())


def _matches(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    name, wanted_port = _split_port(entry.lower())
    if wanted_port not in ("", str(port)):
        return False
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False)
    except ValueError:  # one of them is a name
        domain = name.removeprefix("*").strip(".")
        return bool(domain) and (host == domain or host.endswith(f".{domain}"))


def _split_port(entry: str) -> tuple[str, str]:
    if entry.startswith("["):
        name, _, rest = entry[1:].partition("]")
        return name, rest.removeprefix(":")
    name, colon, port = entry.rpartition(":")
    # More colons are those of an IPv6 address.
    return (name, port) if colon and ":" not in name and port.isdigit() else (entry, "")
