"""Image references, parsed by the grammar of the OCI distribution specification.

Two forms: `[host[:port]/]name[:tag][@sha256:hex]` for a registry, and `oci-layout:/path[:tag|@sha256:hex]` for an OCI
image layout directory on this host, whose path may contain colons. Without tag and digest, the tag is `latest`. With
both, the digest decides and the tag is only shown. As in docker, the part before the first / is a host if it has a dot,
a colon or an upper case letter, or is `localhost`; other names are those of Docker Hub.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.images.errors import BadReferenceError

DEFAULT_TAG: Final = "latest"
LAYOUT_SCHEME: Final = "oci-layout:"
_MAX_LENGTH: Final = 1024
HUB: Final = "docker.io"
_HUB_NAMES: Final = frozenset({HUB, "index.docker.io"})
_HUB_LIBRARY: Final = "library"
_REMEDY: Final = "write host[:port]/name[:tag][@sha256:hex] or oci-layout:/path[:tag|@sha256:hex]"

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]{{2,39}}\])(?::(?P<port>[0-9]{{1,5}}))?")
_WORD = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAMESPACE = re.compile(rf"{_WORD}(?:/{_WORD})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class RegistryName:
    """A repository in a registry. `host` includes the port if the reference has one."""

    host: str
    namespace: str

    def __str__(self) -> str:
        return f"{self.host}/{self.namespace}"


@dataclass(frozen=True, slots=True)
class LayoutName:
    """An OCI image layout directory on this host."""

    path: Path

    def __str__(self) -> str:
        return f"{LAYOUT_SCHEME}{self.path}"


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference: a repository, and a tag, a digest or both."""

    name: RegistryName | LayoutName
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}@{self.digest}" if self.digest else f"{self.name}{tag}"

    @property
    def target(self) -> str:
        """The digest, or the tag without one; registries accept either in the same part of a path."""
        return self.digest or self.tag or DEFAULT_TAG


def parse_reference(text: str) -> Reference:
    """Parse `text`. Raises `BadReferenceError` with the invalid part."""
    if not text or len(text) > _MAX_LENGTH:
        raise _bad(text[:80], "it is empty" if not text else f"it is longer than {_MAX_LENGTH} characters")
    if text.startswith(LAYOUT_SCHEME):
        return _parse_layout(text)
    return _parse_registry(text)


def is_digest(text: str) -> bool:
    """Return whether `text` is a sha256 digest in canonical form."""
    return _DIGEST.fullmatch(text) is not None


def _parse_layout(text: str) -> Reference:
    path, tag, digest = _split_target(text, text.removeprefix(LAYOUT_SCHEME), both=False)
    if not path.startswith("/"):
        raise _bad(text, f"the layout's path {path!r} is not absolute")
    if "\0" in path or "\n" in path or any(part == ".." for part in path.split("/")):
        raise _bad(text, "the layout's path contains `..` or a control character")
    return Reference(LayoutName(Path(path)), tag, digest)


def _parse_registry(text: str) -> Reference:
    host, rest = _split_host(text)
    matched = _HOST.fullmatch(host)
    if matched is None or int(matched["port"] or 1) not in range(1, 65536):
        raise _bad(text, f"{host!r} is not a host name with an optional port")
    namespace, tag, digest = _split_target(text, rest)
    if host in _HUB_NAMES:
        host = HUB
        namespace = namespace if "/" in namespace else f"{_HUB_LIBRARY}/{namespace}"
    if _NAMESPACE.fullmatch(namespace) is None:
        raise _bad(
            text, f"{namespace!r} is not a repository name (lower case letters and digits, with . _ __ - between)"
        )
    return Reference(RegistryName(host, namespace), tag, digest)


def _split_host(text: str) -> tuple[str, str]:
    """Return the host and the rest of a reference; Docker Hub if it names no host."""
    host, slash, rest = text.partition("/")
    is_host = any(sign in host for sign in ".:") or host == "localhost" or host != host.lower()
    return (host, rest) if slash and is_host else (HUB, text)


def _split_target(text: str, rest: str, *, both: bool = True) -> tuple[str, str | None, str | None]:
    """Return the name, the tag and the digest. Without `both`, a colon before a digest is part of the name."""
    name, at, digest = rest.partition("@")
    if at and not is_digest(digest):
        raise _bad(text, f"{digest!r} is not a digest (sha256: and 64 lower case hex digits)")
    # A colon before the last slash belongs to the path, not to a tag.
    head, colon, tag = name.rpartition(":")
    if not colon or "/" in tag or (at and not both):
        return (name, None, digest) if at else (name, DEFAULT_TAG, None)
    if _TAG.fullmatch(tag) is None:
        raise _bad(text, f"{tag!r} is not a tag (letters, digits, _ . and -, at most 128, not with . or - first)")
    return head, tag, digest or None


def _bad(text: str, reason: str) -> BadReferenceError:
    return BadReferenceError(f"{text!r} is not an image reference: {reason}", remedy=_REMEDY)
