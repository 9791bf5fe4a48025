"""Identity, hardware and vitals: from recorded outputs of a Mac, and from this host."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import sys
from pathlib import Path

import pytest

from agent.host import hardware, host_info, vitals
from agent.host.hardware import Hardware, mac_hardware, parse_ioreg, read_hardware
from agent.host.vitals import Heat, MemoryPressure, Vitals, VitalsSampler, measure_vitals, pressure_from_stalls
from agent.processes import sysctl
from agent.processes.boot import boot_id
from agent.processes.command import CommandRunner

RECORDED = Path(__file__).with_name("recorded")
LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
UUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


class Kernel:
    """Values of sysctl by name."""

    def __init__(self, **values: str | int) -> None:
        self.values = {name.replace("__", "."): value for name, value in values.items()}

    def text(self, name: str) -> str:
        return str(self._get(name))

    def integer(self, name: str) -> int:
        return int(self._get(name))

    def _get(self, name: str) -> str | int:
        if name not in self.values:
            raise OSError(2, "No such file or directory", name)
        return self.values[name]


def test_hardware_of_a_mac_mini() -> None:
    kernel = Kernel(
        hw__model="Mac16,10", machdep__cpu__brand_string="Apple M4", hw__perflevel0__physicalcpu=4,
        hw__perflevel1__physicalcpu=6,
    )  # fmt: skip
    properties = parse_ioreg((RECORDED / "ioreg_platform.txt").read_text())
    assert mac_hardware(properties, kernel.text, kernel.integer) == Hardware(
        model="Mac16,10", chip="Apple M4", serial="H7XQ2LP0MN", uuid="5E1C9A3B-7D42-5B1F-8C60-0A9D3F2E4B71",
        performance_cores=4, efficiency_cores=6,
    )  # fmt: skip


def test_hardware_is_empty_when_a_mac_reports_little() -> None:
    kernel = Kernel(hw__physicalcpu=6)
    assert mac_hardware(parse_ioreg("garbage"), kernel.text, kernel.integer) == Hardware(performance_cores=6)


def test_hardware_of_a_linux_host_with_two_kinds_of_cores(tmp_path: Path) -> None:
    for kind, cpus in {"cpu_core": "0-7,16", "cpu_atom": "8-15"}.items():
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "cpus").write_text(f"{cpus}\n")
    (tmp_path / "product_name").write_text("Rack 1\n")
    seen = hardware._linux_hardware(tmp_path, tmp_path, "Some CPU")
    assert seen == Hardware("Rack 1", "Some CPU", "", "", 9, 8)


async def test_host_identity_is_stable_on_this_host() -> None:
    seen = await read_hardware(CommandRunner())
    assert seen.performance_cores + seen.efficiency_cores >= 1
    first, second = [
        await host_info.read_host_identity(
            CommandRunner(), agent_version="1", hypervisor="qemu", hypervisor_version="7"
        )
        for _ in range(2)
    ]
    assert first == second
    assert first.hardware == seen
    assert first.machine_id
    assert (first.arch, first.cpus) == (platform.machine(), os.cpu_count())
    assert UUID.fullmatch(first.boot_id)
    assert first.boot_id == boot_id()


@LINUX_ONLY
def test_sysctl_raises_on_systems_without_it() -> None:
    with pytest.raises(OSError, match="no sysctl"):
        sysctl.text("hw.model")


@pytest.mark.skipif(sys.platform != "darwin", reason="needs macOS")
def test_sysctl_and_vitals_on_this_mac() -> None:
    assert sysctl.text("hw.model")
    assert sysctl.integer("hw.memsize") > 1 << 30
    seen = measure_vitals(Path("/"))
    assert MemoryPressure.UNKNOWN is not seen.memory_pressure
    assert Heat.UNKNOWN is not seen.heat
    assert seen.purgeable_bytes is not None
    assert seen.purgeable_bytes % vitals.GIB == 0


def test_purgeable_space_is_rounded_to_whole_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals, "_ON_MAC", True)
    monkeypatch.setattr(vitals, "_mac_pressure", lambda: MemoryPressure.NORMAL)
    monkeypatch.setattr(vitals, "_mac_heat", lambda: Heat.NOMINAL)
    sizes = iter((5 << 30, (5 << 30) + 1, (6 << 30) - 1, 6 << 30, None))
    monkeypatch.setattr(vitals, "purgeable_bytes", lambda _: next(sizes))
    seen = [measure_vitals(Path("/")).purgeable_bytes for _ in range(5)]
    assert seen == [5 << 30, 5 << 30, 5 << 30, 6 << 30, None]


def test_memory_pressure_follows_the_stalls_of_linux() -> None:
    line = "{} avg10={} avg60=0.00 avg300=0.00 total=0\n"
    for some, full, expected in (
        ("0.00", "0.00", MemoryPressure.NORMAL),
        ("12.50", "1.00", MemoryPressure.WARNING),
        ("60.00", "31.00", MemoryPressure.CRITICAL),
    ):
        assert pressure_from_stalls(line.format("some", some) + line.format("full", full)) is expected
    assert pressure_from_stalls("") is MemoryPressure.UNKNOWN


async def test_vitals_sampler_measures_periodically(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals, "PERIOD_S", 0.0)
    measured = asyncio.Semaphore(0)
    loop = asyncio.get_running_loop()

    def measure() -> Vitals:
        loop.call_soon_threadsafe(measured.release)
        return Vitals(MemoryPressure.WARNING, Heat.HEAVY)

    sampler = VitalsSampler(measure)
    assert sampler.latest == Vitals()
    task = asyncio.create_task(sampler.run())
    for _ in range(3):
        await asyncio.wait_for(measured.acquire(), 10)
    assert sampler.latest == Vitals(MemoryPressure.WARNING, Heat.HEAVY)
    task.cancel()
