"""Fixtures: guest disk images, built once by scripts/demo-image and cached."""
