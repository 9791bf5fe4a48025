"""Errors as documents: RFC 9457 problem details and what they carry."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from agent.api.schemas import Document


class FieldProblem(Document):
    """One field at fault: a JSON Pointer into the request's body and what is wrong there."""

    pointer: str
    detail: str


class LeaseEnding(Document):
    """How a lease ended. `evidence` is where the files are that explain the VM's death, where some were kept."""

    how: Literal["released", "expired", "broken"]
    at: datetime
    pool: str | None
    vm: str | None
    cause: str | None = None
    detail: str = ""
    evidence: str | None = None


class Problem(Document):
    """RFC 9457 problem details, with a stable `code` to branch on and a `remedy` for people."""

    type: str
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: str
    code: str
    remedy: str = ""
    request_id: str
    errors: tuple[FieldProblem, ...] = ()
    ending: LeaseEnding | None = None
    """How the lease ended that was asked for, where the code is `lease-ended`."""
