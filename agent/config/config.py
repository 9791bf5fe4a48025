"""The configuration file as a whole, and its small tables."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from agent.config.api import ApiConfig
from agent.config.base import Seconds, Section
from agent.config.hypervisor import HypervisorConfig
from agent.config.images import ImagesConfig


class HostConfig(Section):
    """`[host]`: what VMs may use of this machine."""

    slots: int = Field(default=2, ge=1, le=1000)
    """VMs that may run at once. Apple allows 2 macOS VMs on one Mac."""
    cpus: float | None = Field(default=None, gt=0)
    """Processors VMs may use together; default: twice what the machine has, since build jobs seldom peak together."""
    memory_mib: int | None = Field(default=None, gt=0)
    """Memory VMs may use together; default: the machine's less `memory_reserve_mib`."""
    memory_reserve_mib: int = Field(default=2048, ge=0)
    disk_reserve_mib: int = Field(default=2048, ge=0)
    """Free space kept on the data volume: below it no VM is created and no image pulled."""
    doctor_period_s: Seconds = 3600.0
    """How often the agent makes the checks of `hearth doctor`; those that fail become conditions."""


class AssignmentConfig(Section):
    """`[assignment]`: the one source of the desired state."""

    source: Literal["file", "api"] = "file"
    file: Path | None = None
    """Default: `assignment.toml` beside the configuration file."""


class AgentConfig(Section):
    """`[agent]`: the agent's own process."""

    watchdog_s: float = Field(default=60.0, ge=10, le=3600)
    """A loop that makes no turn for so long is stuck: the agent writes down where and ends with exit code 70."""


class EvidenceConfig(Section):
    """`[evidence]`: what is kept of failed VMs."""

    max_mib: int = Field(default=256, ge=1)
    """All evidence together; the oldest makes room for new."""
    max_vm_mib: int = Field(default=16, ge=1)
    """Evidence of one VM; its largest files go first."""


class LogConfig(Section):
    """`[log]`."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    max_mib: int = Field(default=32, ge=1)
    """Size at which the log is rotated."""
    max_age_h: float = Field(default=24.0, gt=0, le=8760)
    """Age of its first line at which the log is rotated."""
    budget_mib: int = Field(default=192, ge=2)
    """The log and its rotated files together: the oldest make room."""
    keep_days: float = Field(default=14.0, gt=0, le=3650)
    """Age at which a rotated file is deleted."""

    @model_validator(mode="after")
    def _budget_holds_two_files(self) -> Self:
        if self.budget_mib < 2 * self.max_mib:
            raise ValueError("budget_mib must be at least twice max_mib: the log, and one file that was rotated away")
        return self


class Config(Section):
    """The whole configuration file. `data_dir` holds everything the agent writes."""

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
        """A folder of the volume on which VMs and images lie."""
        return self.hypervisor.tart.home_path if self.hypervisor.driver == "tart" else self.data_dir

    @property
    def assignment_path(self) -> Path:
        """The assignment file, where that is the source."""
        return self.assignment.file or Path("assignment.toml")

    @property
    def socket_path(self) -> Path:
        """The Unix socket the agent listens on."""
        return self.api.socket or self.data_dir / "hearth.sock"
