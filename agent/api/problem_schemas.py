"""Error documents: RFC 9457 problem details."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from agent.api.schemas import Document


class FieldProblem(Document):
    """One invalid field: a JSON Pointer into the request's body, and its error."""

    pointer: str
    detail: str


class LeaseEnding(Document):
    """The end of a lease. `evidence` is the path of the failed VM's evidence, if some was stored."""

    reason: Literal["released", "expired", "broken"]
    at: datetime
    pool: str | None
    vm: str | None
    cause: str | None = None
    detail: str = ""
    evidence: str | None = None


class Problem(Document):
    """RFC 9457 problem details, with a stable `code` for programs and a `remedy` for people."""

    type: str
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: str
    code: str
    remedy: str = ""
    request_id: str
    errors: tuple[FieldProblem, ...] = ()
    ending: LeaseEnding | None = None
    """The end of the requested lease, if the code is `lease-ended`."""
