"""Image indexes: lists of manifests, which some registries and tools put between a tag and its image.

An index is followed if exactly one of its entries fits this host. (OCI image specification, image-index.md; BuildKit,
"Image attestation storage", for the other entries.)
"""

from __future__ import annotations

import platform
from typing import Any, Final

from agent.images.errors import BadImageError
from agent.images.manifest import INDEX_TYPE, MANIFEST_TYPE, parse_json
from agent.images.reference import is_digest

DOCKER_LIST_TYPE: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
_ATTESTATION: Final = "vnd.docker.reference.type"
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_MAX_SHOWN: Final = 8


def select_entry(raw: bytes, name: str, *, machine: str | None = None) -> str | None:
    """Return the digest of the one entry of an index that fits this host; None if `raw` is not an index.

    Raises `BadImageError` if no entry fits, or several do. `machine` is the host's architecture.
    """
    document = parse_json(raw, f"the manifest of {name}")
    media_type = document.get("mediaType")
    manifests = document.get("manifests")
    is_index = media_type in (INDEX_TYPE, DOCKER_LIST_TYPE) or (media_type is None and isinstance(manifests, list))
    if not is_index or "layers" in document:
        return None
    entries = [entry for entry in manifests if _is_image(entry)] if isinstance(manifests, list) else []
    arch = machine or platform.machine()
    fitting = [entry for entry in entries if _platform(entry)[1] == _ARCHITECTURES.get(arch, arch)]
    chosen = entries if len(entries) == 1 else fitting
    if len(chosen) == 1:
        return str(chosen[0]["digest"])
    shown = ", ".join("/".join(part or "?" for part in _platform(entry)) for entry in entries[:_MAX_SHOWN]) or "none"
    raise BadImageError(
        f"{name} is an index in which {len(chosen)} images fit this host, not one; its images are: {shown}",
        remedy="name the image by its own digest: host/name@sha256:hex",
    )


def _is_image(entry: object) -> bool:
    if not isinstance(entry, dict) or not is_digest(str(entry.get("digest"))):
        return False
    annotations = entry.get("annotations")
    is_attestation = isinstance(annotations, dict) and _ATTESTATION in annotations
    return entry.get("mediaType", MANIFEST_TYPE) == MANIFEST_TYPE and not is_attestation


def _platform(entry: dict[str, Any]) -> tuple[str, str]:
    """Return the system and the architecture of an entry, in printable form."""
    found = entry.get("platform")
    values = [found.get(key) if isinstance(found, dict) else None for key in ("os", "architecture")]
    system, arch = (repr(value)[1:-1][:20] if isinstance(value, str) else "" for value in values)
    return system, arch
