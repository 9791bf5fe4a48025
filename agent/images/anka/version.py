"""What names an image on an Anka host: its reference, and the one version that it means now.

A tag can be pushed again, and no digest is exposed, so a version is told by its template, its tag and the ordered list
of its layers (Anka Build Cloud documentation, working with the Registry API).
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
    """A template of the Anka Registry, by name or UUID. Without a tag the newest is meant."""

    template: str
    tag: str | None = None

    def __str__(self) -> str:
        return f"{SCHEME}{self.template}" + (f":{self.tag}" if self.tag else "")


def parse_name(text: str) -> TemplateName | Reference:
    """Parse a reference. Raises `BadReferenceError` that says what is wrong."""
    if not text.startswith(SCHEME):
        reference = parse_reference(text)
        if not isinstance(reference.name, RegistryName) or reference.tag is None:
            raise BadReferenceError(f"{text!r} names nothing that `anka` can pull", remedy=_REMEDY)
        return reference
    template, colon, tag = text.removeprefix(SCHEME).partition(":")
    if _TEMPLATE.fullmatch(template) is None:
        raise BadReferenceError(f"{text!r} is no image reference: {template!r} is no template", remedy=_REMEDY)
    if colon and _TAG.fullmatch(tag) is None:
        raise BadReferenceError(f"{text!r} is no image reference: {tag!r} is no tag", remedy=_REMEDY)
    return TemplateName(template, tag or None)


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a template. `source` is where `anka pull` brings it from: a remote's name, or an OCI host's URL.

    `template` is its UUID, or for one of an OCI registry the repository there. `size_bytes` is that of all its layers.
    """

    digest: str
    template: str
    tag: str
    source: str
    size_bytes: int = 0
    arch: str = ""
    oci: bool = False

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @property
    def options(self) -> tuple[str, ...]:
        """What `anka pull` is told besides template and tag."""
        return ("-o", OCI_VERSION) if self.oci else ()


def identity(template: str, tag: str, layers: tuple[str, ...]) -> str:
    """Return what tells this version from every other, in the form of a digest."""
    told = json.dumps([template, tag, list(layers)], ensure_ascii=False, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(told.encode()).hexdigest()}"
