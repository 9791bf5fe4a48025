"""The agent's configuration and the assignment document: two TOML files, validated to the last key.

Errors name the file, the line or key, and the way out. Everything has a default that works; unknown keys are refused,
because a misspelt limit is worse than a missing one. `hearth config check` runs the same code as the agent.
"""

from agent.config.api import ApiConfig, TlsConfig
from agent.config.assignment import Assignment, PoolDocument, ProbeDocument
from agent.config.base import ConfigError, PoolName, Port, Seconds, Section
from agent.config.config import AgentConfig, AssignmentConfig, Config, EvidenceConfig, HostConfig, LogConfig
from agent.config.hypervisor import AnkaConfig, HypervisorConfig, QemuConfig, TartConfig
from agent.config.images import ImagesConfig, RegistryConfig
from agent.config.load import load_assignment, load_config, parse_assignment

__all__ = [
    "AgentConfig",
    "AnkaConfig",
    "ApiConfig",
    "Assignment",
    "AssignmentConfig",
    "Config",
    "ConfigError",
    "EvidenceConfig",
    "HostConfig",
    "HypervisorConfig",
    "ImagesConfig",
    "LogConfig",
    "PoolDocument",
    "PoolName",
    "Port",
    "ProbeDocument",
    "QemuConfig",
    "RegistryConfig",
    "Seconds",
    "Section",
    "TartConfig",
    "TlsConfig",
    "load_assignment",
    "load_config",
    "parse_assignment",
]
