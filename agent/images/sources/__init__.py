"""Repositories of images: in registries, and in OCI image layout directories."""
