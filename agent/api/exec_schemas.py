"""The messages of an exec stream: JSON documents in text frames. Input and output are bytes in binary frames."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from agent.api.problem_schemas import Problem
from agent.api.request_schemas import Argv
from agent.api.schemas import Document, Schema
from agent.config import Seconds
from agent.hypervisors.sessions import Signal


class ExecStart(Schema):
    """The client's first message: a program and its arguments, without a shell."""

    type: Literal["start"] = "start"
    argv: Argv
    stdin: bool = False
    """Whether the client sends input. Without input the command reads its end immediately."""
    timeout_s: Seconds = 3600.0
    """Maximum duration; the command is killed afterwards."""


class ExecEndInput(Schema):
    """From the client: the end of input."""

    type: Literal["end-input"]


class ExecSignal(Schema):
    """From the client: a signal for the command and its child processes."""

    type: Literal["signal"]
    signal: Signal


Control = Annotated[ExecEndInput | ExecSignal, Field(discriminator="type")]
CONTROL: TypeAdapter[ExecEndInput | ExecSignal] = TypeAdapter(Control)


class ExecStarted(Document):
    """From the agent: the command was started and accepts input."""

    type: Literal["started"] = "started"


class ExecExit(Document):
    """The agent's last message after the command ended: 128 + signal if it was killed."""

    type: Literal["exit"] = "exit"
    exit_code: int


class ExecFailed(Document):
    """The agent's last message if there is no exit code, with the reason."""

    type: Literal["problem"] = "problem"
    problem: Problem
