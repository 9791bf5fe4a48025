"""Result of one fault of a Mac's hypervisor tool: recovery of the agent, and latency of its API during the fault."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from scripts.lib.host import Host

PERIOD_S: Final = 0.02
PROBES: Final = """
[[pools.{pool}.probes]]
kind = "agent"
period_s = 0.5
timeout_s = 1
failures = 2

[[pools.{pool}.probes]]
kind = "http"
port = 8080
period_s = 0.5
timeout_s = 1
failures = 2
"""


@dataclass(frozen=True)
class Fault:
    """Switches by command. `cause`: text that the reported cause must contain; empty when the agent must recover.

    `by` is what triggers the fault: replace a VM, observe the host, or pull a version.
    """

    name: str
    commands: Mapping[str, Mapping[str, Any]]
    cause: str = ""
    by: str = "replace"


@dataclass
class FaultResult:
    """Measured result of one fault."""

    fault: Fault
    livez_ms: list[float] = field(default_factory=list)
    reported_cause: str = ""
    reported_s: float | None = None  # until a cause was reported
    recovered_during_s: float | None = None  # recovered while the fault was set
    recovered_after_s: float | None = None  # recovered after the fault was removed
    hung: int = 0  # commands that ran past their timeout
    left: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Return whether the agent recovered, reported the expected cause, and left nothing behind."""
        recovered = self.recovered_during_s is not None or self.recovered_after_s is not None
        return recovered and self.fault.cause in self.reported_cause and not self.hung and not self.left

    @property
    def p99_ms(self) -> float:
        """Return the 99th percentile of `/livez`, in milliseconds."""
        return p99(self.livez_ms)

    def row(self) -> str:
        """Return the result as a row of a Markdown table."""
        if self.recovered_during_s is not None:
            outcome, took = "recovered", f"{self.recovered_during_s:.1f}"
        else:
            outcome = f"cause: {self._excerpt()}" if self.reported_cause else "NO CAUSE"
            recovered = "never" if self.recovered_after_s is None else f"{self.recovered_after_s:.1f}"
            took = f"{self.reported_s or -1:.1f}, then {recovered}"
        return f"| {self.fault.name} | {outcome} | {took} | {self.p99_ms} | {'yes' if self.ok else 'NO'} |"

    def _excerpt(self) -> str:
        """Return the reported cause in one line, from shortly before the expected text."""
        text = "".join(char if char.isprintable() else " " for char in self.reported_cause).replace("|", "/")
        at = max(0, text.find(self.fault.cause) - 50)
        return ("…" if at else "") + text[at : at + 130]


def p99(took_ms: list[float]) -> float:
    """Return the 99th percentile, in milliseconds."""
    return round(statistics.quantiles(took_ms, n=100)[98], 1)


@contextlib.asynccontextmanager
async def poll_livez(host: Host, result: FaultResult) -> AsyncIterator[None]:
    """Poll `/livez` while the block runs."""
    polling = asyncio.create_task(_poll(host, result))
    try:
        yield
    finally:
        polling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await polling  # raises the error of a failed request


async def _poll(host: Host, result: FaultResult) -> None:
    while True:
        began_s = time.monotonic()
        async with host.http.get("/livez") as response:
            await response.read()
        result.livez_ms.append((time.monotonic() - began_s) * 1000)
        await asyncio.sleep(PERIOD_S)
