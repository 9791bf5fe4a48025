"""Immutable disk images: references, Tart's OCI format, registries, the pull engine and the local store."""
