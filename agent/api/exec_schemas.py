"""What is said on an exec stream: JSON documents in text frames. Input and output are bytes, in binary frames."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from agent.api.problem_schemas import Problem
from agent.api.request_schemas import Argv
from agent.api.schemas import Document, Schema
from agent.config import Seconds
from agent.hypervisors.sessions import Signal


class ExecStart(Schema):
    """The client's first message: a program and its arguments, with no shell in between."""

    type: Literal["start"] = "start"
    argv: Argv
    stdin: bool = False
    """Whether there will be input. Without, the command reads the end of it at once."""
    timeout_s: Seconds = 3600.0
    """How long it may take. It is killed then."""


class ExecEndInput(Schema):
    """From the client: there is no more input."""

    type: Literal["end-input"]


class ExecSignal(Schema):
    """From the client: send the command, and what it has started, a signal."""

    type: Literal["signal"]
    signal: Signal


Control = Annotated[ExecEndInput | ExecSignal, Field(discriminator="type")]
CONTROL: TypeAdapter[ExecEndInput | ExecSignal] = TypeAdapter(Control)


class ExecStarted(Document):
    """From the agent: the command has been started, and input is taken."""

    type: Literal["started"] = "started"


class ExecExit(Document):
    """The agent's last message when the command has ended: 128 + signal for one that was killed."""

    type: Literal["exit"] = "exit"
    exit_code: int


class ExecFailed(Document):
    """The agent's last message when there is no exit code to tell, and why."""

    type: Literal["problem"] = "problem"
    problem: Problem
