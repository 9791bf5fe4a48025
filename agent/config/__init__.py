"""The configuration of the agent and the assignment: two TOML files with strict validation.

Errors name the file, the line or key, and the remedy. Each key has a working default except the required keys of a
pool. Unknown keys are refused, because a misspelt limit would otherwise have no effect. `hearth config check` runs the
same code as the agent.
"""

from agent.config.api import ApiConfig, TlsConfig
from agent.config.assignment import MAX_POOLS, STORED, Assignment, PoolDocument, ProbeDocument
from agent.config.base import ConfigError, PoolName, Port, Seconds, Section
from agent.config.config import AgentConfig, AssignmentConfig, Config, EvidenceConfig, HostConfig, LogConfig
from agent.config.hypervisor import AnkaConfig, HypervisorConfig, QemuConfig, TartConfig
from agent.config.images import ImagesConfig, RegistryConfig
from agent.config.load import load_assignment, load_config, parse_assignment

__all__ = [
    "MAX_POOLS",
    "STORED",
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
