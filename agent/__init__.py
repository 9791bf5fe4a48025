"""Hearth: a host agent that keeps warm pools of VM clones on a CI host, and leases each VM to one job."""

__version__ = "0.1.0"
