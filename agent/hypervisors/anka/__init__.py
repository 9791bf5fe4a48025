"""The anka driver: macOS VMs by Veertu's Anka, whose templates and tags are the images."""

from agent.hypervisors.anka.driver import AnkaHypervisor

__all__ = ["AnkaHypervisor"]
