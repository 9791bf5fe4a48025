"""`[images]`: registries, limits of pulls, and limits of the image store."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator

from agent.config.base import Seconds, Section


class RegistryConfig(Section):
    """`[images.registries."host:port"]`: connection settings of one registry."""

    insecure: bool = False
    """Use plain HTTP. Without this setting the agent uses only HTTPS for the registry."""
    username: str | None = None
    password: SecretStr | None = None
    ca_file: Path | None = None
    """Certificates (PEM) to trust for this registry, in addition to those of the system."""
    mirrors: tuple[str, ...] = ()
    """Registries, `host[:port]`, with the same repositories. The agent tries them first, in this order."""
    local_redirects: bool = False
    """Allow the registry to redirect to loopback, link-local and cloud metadata addresses of this host."""

    @model_validator(mode="after")
    def _check_login(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password belong together: set both or neither")
        return self


class ImagesConfig(Section):
    """`[images]`: pulls and the image store."""

    streams: int = Field(default=8, ge=1, le=64)
    """Parallel downloads of one pull."""
    resolve_period_s: Seconds = 300.0
    """Period at which tags are resolved again, to notice new versions."""
    budget_mib: int | None = Field(default=None, gt=0)
    """Limit for the disk space of all images together. Default: the whole disk without the reserve."""
    high_watermark_percent: float = Field(default=90.0, gt=0, le=100, allow_inf_nan=False)
    """Usage of the volume above which unused images are evicted, the least recently used first."""
    low_watermark_percent: float = Field(default=80.0, ge=0, le=100, allow_inf_nan=False)
    """Usage of the volume at which the eviction stops."""
    bandwidth_mib_per_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Limit for the network bandwidth of all pulls together. Default: no limit."""
    registries: dict[str, RegistryConfig] = Field(default={})

    @model_validator(mode="after")
    def _check_watermarks(self) -> Self:
        if self.low_watermark_percent > self.high_watermark_percent:
            raise ValueError("low_watermark_percent is above high_watermark_percent: lower it")
        return self
