"""Tool faults that chaos draws: reproducible by seed, and supported by the simulators."""

from __future__ import annotations

import pytest

from scripts.lib.chaos.tool_faults import ANKA, SOME_VM, TART, ToolFault, draw_fault
from tests.simulators.anka import faults as anka
from tests.simulators.anka.main import COMMANDS as ANKA_COMMANDS
from tests.simulators.tartsim import faults as tart
from tests.simulators.tartsim.main import COMMANDS as TART_COMMANDS


@pytest.mark.parametrize("fault", TART, ids=str)
def test_tart_simulator_supports_fault(fault: ToolFault) -> None:
    assert fault.command in TART_COMMANDS
    assert all(f"`{switch}`" in (tart.__doc__ or "") for switch in fault.switches)


@pytest.mark.parametrize("fault", ANKA, ids=str)
def test_anka_simulator_supports_fault(fault: ToolFault) -> None:
    assert fault.command in {*ANKA_COMMANDS, "*"}
    assert all(switch in (anka.__doc__ or "") for switch in fault.switches)


def test_seed_draws_same_faults_and_all_of_them() -> None:
    drawn = [draw_fault(7, number, ANKA) for number in range(400)]
    assert drawn == [draw_fault(7, number, ANKA) for number in range(400)]
    assert all(fault in drawn for fault in ANKA)


def test_placeholder_is_replaced_by_running_vm() -> None:
    fault = ToolFault("list", {"omit": [SOME_VM]}, 2)
    assert fault.on(["one", "two"]) == {"list": {"omit": ["one"], "times": 2}}
    assert fault.on([]) == {"list": {"omit": [], "times": 2}}
