"""The faults of a Mac's tool that chaos draws: the same ones for the same seed, and each one the simulators know."""

from __future__ import annotations

import pytest

from scripts.lib.chaos.tool_faults import ANKA, SOME_VM, TART, ToolFault, draw_fault
from tests.simulators.anka import faults as anka
from tests.simulators.anka.main import COMMANDS as ANKA_COMMANDS
from tests.simulators.tartsim import faults as tart
from tests.simulators.tartsim.main import COMMANDS as TART_COMMANDS


@pytest.mark.parametrize("fault", TART, ids=str)
def test_tart_can_fail_like_that(fault: ToolFault) -> None:
    assert fault.command in TART_COMMANDS
    assert all(f"`{switch}`" in (tart.__doc__ or "") for switch in fault.switches)


@pytest.mark.parametrize("fault", ANKA, ids=str)
def test_anka_can_fail_like_that(fault: ToolFault) -> None:
    assert fault.command in {*ANKA_COMMANDS, "*"}
    assert all(switch in (anka.__doc__ or "") for switch in fault.switches)


def test_a_seed_draws_the_same_faults_again_and_in_time_all_of_them() -> None:
    drawn = [draw_fault(7, number, ANKA) for number in range(400)]
    assert drawn == [draw_fault(7, number, ANKA) for number in range(400)]
    assert all(fault in drawn for fault in ANKA)


def test_some_vm_is_one_that_runs() -> None:
    fault = ToolFault("list", {"omit": [SOME_VM]}, 2)
    assert fault.on(["one", "two"]) == {"list": {"omit": ["one"], "times": 2}}
    assert fault.on([]) == {"list": {"omit": [], "times": 2}}
