"""What one fault of a Mac's tool did to a whole agent, and how fast the agent answered meanwhile."""

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
    """Faults by command. `told`: what a cause must say where the agent cannot get past it; empty where it must.

    `by` is what makes the agent run into it: replace a VM, look around, or pull a version.
    """

    name: str
    commands: Mapping[str, Mapping[str, Any]]
    cause: str = ""
    by: str = "replace"


@dataclass
class FaultResult:
    """What one fault did."""

    fault: Fault
    livez_ms: list[float] = field(default_factory=list)
    reported_cause: str = ""
    reported_s: float | None = None  # until a cause was told
    recovered_during_s: float | None = None  # recovered with the fault still on
    recovered_after_s: float | None = None  # recovered once it was off
    hung: int = 0  # processes of commands that outlived their time
    left: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether it recovered, told what it had to, and left nothing."""
        recovered = self.recovered_during_s is not None or self.recovered_after_s is not None
        return recovered and self.fault.cause in self.reported_cause and not self.hung and not self.left

    @property
    def p99_ms(self) -> float:
        """The slowest answer but for one in a hundred."""
        return p99(self.livez_ms)

    def row(self) -> str:
        """Return it as a row of a table."""
        if self.recovered_during_s is not None:
            outcome, took = "recovered", f"{self.recovered_during_s:.1f}"
        else:
            outcome = f"told: {self._words()}" if self.reported_cause else "NO CAUSE"
            mended = "never" if self.recovered_after_s is None else f"{self.recovered_after_s:.1f}"
            took = f"{self.reported_s or -1:.1f}, then {mended}"
        return f"| {self.fault.name} | {outcome} | {took} | {self.p99_ms} | {'yes' if self.ok else 'NO'} |"

    def _words(self) -> str:
        """Return what was told, from shortly before what it had to tell, in one line."""
        said = "".join(char if char.isprintable() else " " for char in self.reported_cause).replace("|", "/")
        at = max(0, said.find(self.fault.cause) - 50)
        return ("…" if at else "") + said[at : at + 130]


def p99(took_ms: list[float]) -> float:
    """Return the slowest of some answers but for one in a hundred, in milliseconds."""
    return round(statistics.quantiles(took_ms, n=100)[98], 1)


@contextlib.asynccontextmanager
async def poll_livez(host: Host, result: FaultResult) -> AsyncIterator[None]:
    """Ask `/livez` again and again while the block runs."""
    asking = asyncio.create_task(_ask(host, result))
    try:
        yield
    finally:
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking  # raises what kept the agent from answering


async def _ask(host: Host, result: FaultResult) -> None:
    while True:
        began_s = time.monotonic()
        async with host.http.get("/livez") as response:
            await response.read()
        result.livez_ms.append((time.monotonic() - began_s) * 1000)
        await asyncio.sleep(PERIOD_S)
