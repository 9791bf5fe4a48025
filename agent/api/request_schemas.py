"""The request documents: strict and closed. Every field is checked before anything changes."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from agent.api.schemas import Count, Schema, Text
from agent.config import PoolName, Seconds

Argv = Annotated[
    tuple[Annotated[str, Field(max_length=32768, pattern=r"^[^\x00]*$")], ...], Field(min_length=1, max_length=1000)
]
"""A program and its arguments, without a shell."""

LeaseTtl = Annotated[float, Field(ge=1, le=7 * 86400, allow_inf_nan=False)]
"""Time to live of a lease in seconds: a shorter one would expire before its response is read."""

LAST_NUMBER: Final = 2**63 - 1
"""The largest number of an event that the journal can store."""


class EventQuery(Schema):
    """A selection of events: those after the number `after`, of one VM if named, at most `limit`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    after: Annotated[int, Field(ge=0, le=LAST_NUMBER)] | None = None
    vm: Text | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class ExecRequest(Schema):
    """Run a command in the guest of a leased VM: a program and its arguments, without a shell."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"argv": ["make", "test"], "timeout_s": 600}]})

    argv: Argv
    timeout_s: Seconds = 3600.0
    """Maximum duration. After it the command runs on until the lease ends; an exec stream kills its command instead."""


class HostQuery(Schema):
    """Wait for a change: return when the sequence differs from `after`, or after `wait_s`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    after: Count | None = None
    wait_s: Annotated[float, Field(ge=0, le=120, allow_inf_nan=False)] = 30.0


class LeaseRenewal(Schema):
    """Extend a lease by `ttl_s` from now. The default is its first time to live."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ttl_s": 3600}]})

    ttl_s: LeaseTtl | None = None


class LeaseRequest(Schema):
    """Request a VM of a pool."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"pool": "small", "holder": "job 4711", "wait_s": 60}]})

    pool: PoolName
    holder: Text
    """The user of the VM, in the client's words: a job id, a person."""
    ttl_s: LeaseTtl | None = None
    """Time to live unless renewed; the pool sets default and limit."""
    wait_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 0.0
    """Maximum wait for a VM to become ready. The wait ends with the connection."""
    idempotency_key: Text | None = None
    """A request with the same key and arguments returns the same lease."""


class Reason(Schema):
    """The operator's reason."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    reason: Text | Literal[""] = ""


class VmReplacement(Schema):
    """Why a VM is replaced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    reason: Text = "requested over the API"
