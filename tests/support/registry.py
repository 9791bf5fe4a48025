"""Fixtures: a real docker-registry process on a free loopback port."""
