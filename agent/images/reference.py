"""Image references, parsed strictly.

Two forms: `host[:port]/namespace[:tag|@sha256:hex]` for a registry, and `oci-layout:/path[:tag|@sha256:hex]` for an OCI
image layout directory on this host. Without tag or digest, the tag is `latest`. The registry form stays inside Tart's
grammar (ASCII letters and digits with single separators), so that a name that Hearth accepts names the same image in
Tart. There is no default registry.
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
_REMEDY: Final = "write host[:port]/name[:tag|@sha256:hex] or oci-layout:/path[:tag|@sha256:hex]"

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]{{2,39}}\])(?::(?P<port>[0-9]{{1,5}}))?")
_WORD = r"[a-z0-9]+(?:[._-][a-z0-9]+)*"
_NAMESPACE = re.compile(rf"{_WORD}(?:/{_WORD})*")
_TAG = re.compile(r"[a-zA-Z0-9]+(?:[._-][a-zA-Z0-9]+)*")
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
    """A parsed reference: a repository, and either a tag or a digest."""

    name: RegistryName | LayoutName
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"

    @property
    def target(self) -> str:
        """The tag or the digest; registries accept either in the same part of a path."""
        return self.digest or self.tag or DEFAULT_TAG

    def at(self, digest: str) -> Reference:
        """Return the reference to one version in the same repository."""
        return Reference(self.name, digest=digest)


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
    path, tag, digest = _split_target(text, text.removeprefix(LAYOUT_SCHEME))
    if not path.startswith("/"):
        raise _bad(text, f"the layout's path {path!r} is not absolute")
    if "\0" in path or "\n" in path or any(part == ".." for part in path.split("/")):
        raise _bad(text, "the layout's path contains `..` or a control character")
    return Reference(LayoutName(Path(path)), tag, digest)


def _parse_registry(text: str) -> Reference:
    host, slash, rest = text.partition("/")
    if not slash:
        raise _bad(text, "it has no registry: the part before the first / must be the registry's host")
    matched = _HOST.fullmatch(host)
    if matched is None or int(matched["port"] or 1) not in range(1, 65536):
        raise _bad(text, f"{host!r} is not a host name with an optional port")
    namespace, tag, digest = _split_target(text, rest)
    if _NAMESPACE.fullmatch(namespace) is None:
        raise _bad(
            text, f"{namespace!r} is not a repository name (lower case letters and digits, single . _ - between)"
        )
    return Reference(RegistryName(host, namespace), tag, digest)


def _split_target(text: str, rest: str) -> tuple[str, str | None, str | None]:
    name, at, digest = rest.partition("@")
    if at:
        if not is_digest(digest):
            raise _bad(text, f"{digest!r} is not a digest (sha256: and 64 lower case hex digits)")
        return name, None, digest
    # A colon before the last slash belongs to the path, not to a tag.
    head, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        return rest, DEFAULT_TAG, None
    if len(tag) > 128 or _TAG.fullmatch(tag) is None:
        raise _bad(text, f"{tag!r} is not a tag (letters and digits with single . _ - between, at most 128)")
    return head, tag, None


def _bad(text: str, reason: str) -> BadReferenceError:
    return BadReferenceError(f"{text!r} is not an image reference: {reason}", remedy=_REMEDY)
