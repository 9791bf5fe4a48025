"""The simulated hypervisor: keeps the whole contract without real VMs. For load tests and demos, also of many hosts."""

from __future__ import annotations

from agent.hypervisors.simulated.behaviour import Behaviour, Distribution, constant, lognormal, uniform
from agent.hypervisors.simulated.driver import SimulatedHypervisor
from agent.hypervisors.simulated.host import Clock, SimulatedHost

__all__ = [
    "Behaviour",
    "Clock",
    "Distribution",
    "SimulatedHost",
    "SimulatedHypervisor",
    "constant",
    "lognormal",
    "uniform",
]
