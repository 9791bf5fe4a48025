"""What clients send: strict and closed, checked to the last field before anything is done."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from agent.api.schemas import Count, Schema, Text
from agent.config import PoolName, Seconds

Argv = Annotated[
    tuple[Annotated[str, Field(max_length=32768, pattern=r"^[^\x00]*$")], ...], Field(min_length=1, max_length=1000)
]
"""A program and its arguments, with no shell in between."""

LeaseTtl = Annotated[float, Field(ge=1, le=7 * 86400, allow_inf_nan=False)]
"""Seconds a lease lives: a shorter one would be over before its answer is read."""

LAST_NUMBER: Final = 2**63 - 1
"""No event can have a higher number: the journal holds none."""


class EventQuery(Schema):
    """Which events: those after the number `after`, of one VM if named, at most `limit` of them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    after: Annotated[int, Field(ge=0, le=LAST_NUMBER)] | None = None
    vm: Text | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class ExecRequest(Schema):
    """Run a command in the guest of a leased VM: a program and its arguments, with no shell in between."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"argv": ["make", "test"], "timeout_s": 600}]})

    argv: Argv
    timeout_s: Seconds = 3600.0
    """How long it may take. What was started then runs on until the lease ends: an exec stream has none of that."""


class HostQuery(Schema):
    """Wait for a change: answer as soon as the sequence is no longer `after`, or after `wait_s`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    after: Count | None = None
    wait_s: Annotated[float, Field(ge=0, le=120, allow_inf_nan=False)] = 30.0


class LeaseRenewal(Schema):
    """Let a lease live on for `ttl_s` from now; default: as long as it was given first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ttl_s": 3600}]})

    ttl_s: LeaseTtl | None = None


class LeaseRequest(Schema):
    """Ask for a VM of a pool."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"pool": "small", "holder": "job 4711", "wait_s": 60}]})

    pool: PoolName
    holder: Text
    """Who will use it, in the client's own words: a job id, a person."""
    ttl_s: LeaseTtl | None = None
    """How long the claim lives unless renewed; default and limit are the pool's."""
    wait_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 0.0
    """How long to wait for a VM to turn ready. The wait ends with the connection."""
    idempotency_key: Text | None = None
    """Asking again with the same key and arguments returns the same lease instead of another."""


class Reason(Schema):
    """Why an operator asks for it, in their own words."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    reason: Text | Literal[""] = ""


class VmReplacement(Schema):
    """Why a VM is replaced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    reason: Text = "asked for over the API"
