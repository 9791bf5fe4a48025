"""References to Anka templates, and the versions that they name.

A tag can be pushed again, and Anka exposes no digest. Therefore a version is identified by its template, its tag and
the ordered list of its layers (Anka Build Cloud documentation, "Working with the Registry API").
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Final

from agent.images.errors import BadReferenceError
from agent.images.reference import Reference, RegistryName, parse_reference

SCHEME: Final = "anka:"
OCI_VERSION: Final = "2"
_REMEDY: Final = "write anka:TEMPLATE[:TAG], or host[:port]/name[:tag] for an OCI registry"
_TEMPLATE: Final = re.compile(r"[^\s:/-][^\s:/]{0,127}")
_TAG: Final = re.compile(r"[^\s:/-][^\s/]{0,127}")


@dataclass(frozen=True, slots=True)
class TemplateName:
    """A template of the Anka Registry, by name or UUID. Without a tag, the newest version."""

    template: str
    tag: str | None = None

    def __str__(self) -> str:
        return f"{SCHEME}{self.template}" + (f":{self.tag}" if self.tag else "")


def parse_name(text: str) -> TemplateName | Reference:
    """Parse a reference. Raises `BadReferenceError` with the invalid part."""
    if not text.startswith(SCHEME):
        reference = parse_reference(text)
        if not isinstance(reference.name, RegistryName) or reference.digest is not None:
            raise BadReferenceError(f"{text!r} is not a reference that `anka` can pull", remedy=_REMEDY)
        return reference
    template, colon, tag = text.removeprefix(SCHEME).partition(":")
    if _TEMPLATE.fullmatch(template) is None:
        raise BadReferenceError(
            f"{text!r} is not an image reference: {template!r} is not a template name", remedy=_REMEDY
        )
    if colon and _TAG.fullmatch(tag) is None:
        raise BadReferenceError(f"{text!r} is not an image reference: {tag!r} is not a tag", remedy=_REMEDY)
    return TemplateName(template, tag or None)


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a template.

    `source` is the argument of `anka pull`: the name of a remote, or the URL of an OCI registry. `template` is a UUID,
    or the repository in an OCI registry. `size_bytes` is the size of all layers; 0 if unknown.
    """

    digest: str
    template: str
    tag: str
    source: str
    size_bytes: int = 0
    arch: str = ""
    oci: bool = False

    def to_json(self) -> str:
        """Return the version as JSON."""
        return json.dumps(asdict(self))

    @property
    def options(self) -> tuple[str, ...]:
        """The options of `anka pull` for this version."""
        return ("-o", OCI_VERSION) if self.oci else ()


@dataclass(frozen=True, slots=True)
class DownloadSize:
    """The result of `anka pull --check-download-size`, in bytes. `available` is None if Anka did not report it."""

    missing: int
    available: int | None = None


def version_digest(template: str, tag: str, layers: tuple[str, ...]) -> str:
    """Return the identity of a version, in the form of a digest."""
    document = json.dumps([template, tag, list(layers)], ensure_ascii=False, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(document.encode()).hexdigest()}"
