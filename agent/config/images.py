"""`[images]`: how images are pulled, and from where."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator

from agent.config.base import Seconds, Section


class RegistryConfig(Section):
    """`[images.registries."host:port"]`: how to speak to one registry."""

    insecure: bool = False
    """Speak plain http. Never guessed: a registry not listed as insecure is spoken to by https only."""
    username: str | None = None
    password: SecretStr | None = None
    ca_file: Path | None = None
    """Certificates (PEM) to trust for this registry, beside the system's."""
    mirrors: tuple[str, ...] = ()
    """Registries, `host[:port]`, that hold the same repositories: asked first, in this order."""

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password belong together: set both or neither")
        return self


class ImagesConfig(Section):
    """`[images]`."""

    streams: int = Field(default=8, ge=1, le=64)
    """Parallel downloads of one pull."""
    resolve_period_s: Seconds = 300.0
    """How often a tag is asked for anew, to notice that it moved."""
    budget_mib: int | None = Field(default=None, gt=0)
    """The most that images may take on the disk together; default: all but the reserve."""
    high_watermark_percent: float = Field(default=90.0, gt=0, le=100, allow_inf_nan=False)
    """Use of the volume above which images that nobody needs are given up, the least recently used first."""
    low_watermark_percent: float = Field(default=80.0, ge=0, le=100, allow_inf_nan=False)
    """Use of the volume at which that ends."""
    bandwidth_mib_per_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """The most that all pulls may take of the network together; default: no limit."""
    registries: dict[str, RegistryConfig] = Field(default={})

    @model_validator(mode="after")
    def _low_below_high(self) -> Self:
        if self.low_watermark_percent > self.high_watermark_percent:
            raise ValueError("low_watermark_percent must not be above high_watermark_percent")
        return self
