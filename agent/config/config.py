"""The whole configuration file, and its small tables."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from agent.config.api import ApiConfig
from agent.config.base import Seconds, Section
from agent.config.hypervisor import HypervisorConfig
from agent.config.images import ImagesConfig


class HostConfig(Section):
    """`[host]`: resources of this machine that VMs may use together."""

    slots: int = Field(default=2, ge=1, le=1000)
    """VMs that can run at the same time. Apple allows 2 macOS VMs on one Mac."""
    cpus: float | None = Field(default=None, gt=0)
    """Processors of all running VMs together. Default: twice the number of the machine, because build jobs seldom need
    all their processors at the same time."""
    memory_mib: int | None = Field(default=None, gt=0)
    """Memory of all running VMs together. Default: the memory of the machine minus `memory_reserve_mib`."""
    memory_reserve_mib: int = Field(default=2048, ge=0)
    disk_reserve_mib: int = Field(default=2048, ge=0)
    """Free space to keep on the data volume. With less, the agent creates no VM and pulls no image."""
    doctor_period_s: Seconds = 3600.0
    """Period of the checks of `hearth doctor` in the agent. Failing checks become conditions."""


class AssignmentConfig(Section):
    """`[assignment]`: the source of the desired state."""

    source: Literal["file", "api"] = "file"
    file: Path | None = None
    """Assignment file. Default: `assignment.toml` in the folder of the configuration file."""


class AgentConfig(Section):
    """`[agent]`: the process of the agent."""

    watchdog_s: float = Field(default=60.0, ge=10, le=3600)
    """Time without a completed reconcile pass after which the agent logs its stacks and ends with exit code 70."""


class EvidenceConfig(Section):
    """`[evidence]`: files that are kept of failed VMs."""

    max_mib: int = Field(default=256, ge=1)
    """Limit for all evidence together; the oldest evidence is deleted first."""
    max_vm_mib: int = Field(default=16, ge=1)
    """Limit for the evidence of one VM; its largest files are deleted first."""


class LogConfig(Section):
    """`[log]`: level, rotation and retention of the log."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    max_mib: int = Field(default=32, ge=1)
    """Size at which the log is rotated."""
    max_age_h: float = Field(default=24.0, gt=0, le=8760)
    """Age of the first line at which the log is rotated."""
    budget_mib: int = Field(default=192, ge=2)
    """Limit for the log and its rotated files together; the oldest files are deleted first."""
    keep_days: float = Field(default=14.0, gt=0, le=3650)
    """Age at which a rotated file is deleted."""

    @model_validator(mode="after")
    def _check_budget(self) -> Self:
        if self.budget_mib < 2 * self.max_mib:
            raise ValueError("budget_mib must be at least twice max_mib: it includes the log and one rotated file")
        return self


class Config(Section):
    """The whole configuration file. `data_dir` contains all files that the agent writes."""

    data_dir: Path = Path("/var/lib/hearth")
    host: HostConfig = HostConfig()
    hypervisor: HypervisorConfig = HypervisorConfig()
    images: ImagesConfig = ImagesConfig()
    api: ApiConfig = ApiConfig()
    assignment: AssignmentConfig = AssignmentConfig()
    agent: AgentConfig = AgentConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    log: LogConfig = LogConfig()

    @property
    def vm_volume(self) -> Path:
        """A folder on the volume of the VMs and images."""
        return self.hypervisor.tart.home_path if self.hypervisor.driver == "tart" else self.data_dir

    @property
    def assignment_path(self) -> Path:
        """The assignment file, used if the source is `file`."""
        return self.assignment.file or Path("assignment.toml")

    @property
    def socket_path(self) -> Path:
        """The Unix socket of the API."""
        return self.api.socket or self.data_dir / "hearth.sock"
