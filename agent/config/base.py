"""Base class and types of all tables in both files, and the error for invalid files."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from agent.domain.errors import ErrorOrigin, HearthError
from agent.domain.names import POOL_PATTERN

Seconds = Annotated[float, Field(ge=0.001, le=7 * 86400, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=1, le=65535)]
PoolName = Annotated[str, Field(pattern=f"^{POOL_PATTERN}$")]


class ConfigError(HearthError):
    """A configuration or assignment file is invalid or unreadable."""

    code = "bad-configuration"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class Section(BaseModel):
    """Base of all tables in both files: unknown keys are errors, and instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)
