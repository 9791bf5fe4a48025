"""Builds the configured driver. Imports a driver's modules only if it is the configured one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.processes.command import CommandRunner, ignore_report

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.config import Config
    from agent.hypervisors.contract import Hypervisor
    from agent.processes.command import CommandReport


def build_hypervisor(config: Config, observer: Callable[[CommandReport], None] = ignore_report) -> Hypervisor:
    """Return the configured driver before its `preflight`. `observer` gets a report of every command that it runs."""
    match config.hypervisor.driver:
        case "simulated":
            from agent.hypervisors.simulated import SimulatedHypervisor  # noqa: PLC0415

            return SimulatedHypervisor()
        case "anka":
            from agent.hypervisors.anka import AnkaHypervisor  # noqa: PLC0415

            return AnkaHypervisor(
                config.hypervisor.anka, records_dir=config.data_dir / "vms", runner=CommandRunner(observer)
            )
        case "tart":
            from agent.hypervisors.tart.driver import TartHypervisor  # noqa: PLC0415

            return TartHypervisor(
                config.hypervisor.tart, records_dir=config.data_dir / "vms", runner=CommandRunner(observer)
            )
        case "qemu":
            from agent.hypervisors.qemu.driver import QemuHypervisor  # noqa: PLC0415

            return QemuHypervisor(
                config.hypervisor.qemu,
                vms_dir=config.data_dir / "vms",
                templates_dir=config.data_dir / "templates",
                state_dir=config.data_dir / "state",
                runner=CommandRunner(observer),
            )
