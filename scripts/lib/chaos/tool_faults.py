"""Faults of a simulated Mac's hypervisor tool during chaos: one per round, drawn separately from the steps."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TOOL_S: Final = 5.0
"""Timeout of one command on a chaos host."""
SOME_VM: Final = "some VM"
"""Placeholder for the name of a VM that runs when the fault begins."""
STRANGER: Final = "foreign-vm"


@dataclass(frozen=True, slots=True)
class ToolFault:
    """A command, its fault, and the number of calls that fail.

    `switches`: see `tests.simulators.tartsim.faults` and `tests.simulators.anka.faults`.
    """

    command: str
    switches: Mapping[str, Any]
    times: int = field(default=1)

    def __str__(self) -> str:
        return f"{self.command} fails {self.times} times: {dict(self.switches)}"

    def on(self, vms: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the switches in a simulator's format, for a host that runs these VMs."""
        named = {
            key: [vms[0] if name == SOME_VM else name for name in value if vms or name != SOME_VM]
            if isinstance(value, list)
            else value
            for key, value in self.switches.items()
        }
        return {self.command: {**named, "times": self.times}}


TART: Final = (
    ToolFault("clone", {"hang": True}),
    ToolFault("clone", {"hang_on_term": True}),
    ToolFault("clone", {"slow_s": 1}, 2),
    ToolFault("clone", {"half_done": True}, 2),
    ToolFault("clone", {"die_at": "copied nvram.bin"}, 2),
    ToolFault("clone", {"die_at": "moved"}, 2),
    ToolFault("set", {"garbage": True}, 2),
    ToolFault("run", {"hang": True}),
    ToolFault("run", {"garbage": True}, 2),
    ToolFault("run", {"die_at": "slot taken"}, 2),
    ToolFault("run", {"die_at": "listening"}, 2),
    ToolFault("run", {"leak": True}),
    ToolFault("exec", {"hang": True}, 2),
    ToolFault("exec", {"garbage": True}, 2),
    ToolFault("ip", {"garbage": True}, 2),
    ToolFault("delete", {"hang_on_term": True}),
    ToolFault("delete", {"die_at": "found"}, 2),
)
ANKA: Final = (
    ToolFault("clone", {"hang": True}),
    ToolFault("clone", {"hang": True, "ignore_term": True}),
    ToolFault("clone", {"slow_s": 1}, 2),
    ToolFault("clone", {"half": True}, 2),
    ToolFault("clone", {"die_at": 1}, 2),
    ToolFault("clone", {"die_at": 2}, 2),
    ToolFault("clone", {"lie": True}, 2),
    ToolFault("modify", {"die_at": 1}, 2),
    ToolFault("modify", {"garbage": True}, 2),
    ToolFault("start", {"hang": True, "ignore_term": True}),
    ToolFault("start", {"half": True}, 2),
    ToolFault("start", {"die_at": 1}, 2),
    ToolFault("start", {"die_at": 2}, 2),
    ToolFault("start", {"lie": True}, 2),
    ToolFault("show", {"garbage": True}, 2),
    ToolFault("run", {"hang": True}, 2),
    ToolFault("run", {"garbage": True}, 2),
    ToolFault("stop", {"hang": True, "ignore_term": True}),
    ToolFault("stop", {"lie": True}, 2),
    ToolFault("stop", {"leak_slot": True}),
    ToolFault("delete", {"hang": True}),
    ToolFault("delete", {"die_at": 1}, 2),
    ToolFault("delete", {"lie": True}, 2),
    ToolFault("list", {"hang": True}),
    ToolFault("list", {"garbage": True}, 2),
    ToolFault("list", {"empty_body": True}, 2),
    ToolFault("list", {"omit": [SOME_VM]}, 2),
    ToolFault("list", {"invent": [STRANGER]}, 2),
    ToolFault("pull", {"lie": True}, 2),
    ToolFault("pull", {"break_at": 1}, 2),
    ToolFault("pull", {"die_at": 1}, 2),
    ToolFault("*", {"slow_s": 0.3}, 9),
)


def draw_fault(seed: int, number: int, faults: Sequence[ToolFault]) -> ToolFault:
    """Return the fault of a round. Pure: the same seed draws the same faults."""
    return random.Random(f"{seed}-{number}").choice(faults)
