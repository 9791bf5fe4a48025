"""Hearth: the host agent that keeps warm pools of VM clones on a CI host and leases them one job at a time."""

__version__ = "0.1.0"
