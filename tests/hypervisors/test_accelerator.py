"""The selection of an accelerator, with a scripted emulator for those that this machine does not have."""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.config import QemuConfig
from agent.hypervisors.contract import HypervisorUnavailableError
from agent.hypervisors.qemu import QemuHypervisor, accelerator
from agent.hypervisors.qemu.machine import machine_for
from agent.processes.command import CommandReport, CommandRunner, ProgramMissingError

if TYPE_CHECKING:
    from collections.abc import Callable

KVM_RUNS, KVM_HANGS, KVM_CRASHES = "exit 33", "exec sleep 60", "echo 'no such device' >&2; exit 1"


class Host:
    """A host with a scripted QEMU that records its trials."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.trials: list[str] = []
        (self.bin / "qemu-img").touch()

    def install(self, *, kvm: str, tcg: str = "exit 33", version: str = "9.0.1") -> None:
        emulator = self.bin / "qemu-system-x86_64"
        emulator.write_text(
            f"""#!/bin/sh
            case "$*" in
              --version) echo "QEMU emulator version {version} (Debian 1:9)" ;;
              *accel=kvm*) echo kvm >> {self.folder}/trials; {kvm} ;;
              *accel=tcg*) echo tcg >> {self.folder}/trials; {tcg} ;;
            esac"""
        )
        emulator.chmod(0o755)

    def driver(self, wanted: str = "auto", observer: Callable[[CommandReport], None] | None = None) -> QemuHypervisor:
        return QemuHypervisor(
            QemuConfig.model_validate({"accelerator": wanted, "binary": str(self.bin / "qemu-system-x86_64")}),
            vms_dir=self.folder / "vms",
            templates_dir=self.folder / "templates",
            state_dir=self.folder / "state",
            runner=CommandRunner(observer) if observer else None,
        )

    def take_trials(self) -> list[str]:
        """Return the accelerators tried since the last call."""
        trials = self.folder / "trials"
        lines = trials.read_text().split() if trials.exists() else []
        trials.unlink(missing_ok=True)
        return lines


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setitem(accelerator.TRIAL_S, "kvm", 0.3)
    return Host(tmp_path)


async def test_fastest_working_accelerator_is_selected_and_cached(host: Host) -> None:
    host.install(kvm=KVM_RUNS)
    driver = host.driver()
    assert driver.version == ""
    await driver.preflight()
    assert driver.version == "9.0.1 (kvm)"
    assert host.take_trials() == ["kvm"]
    again = host.driver()
    await again.preflight()
    assert again.version == "9.0.1 (kvm)"
    assert host.take_trials() == []


@pytest.mark.parametrize("kvm", [KVM_HANGS, KVM_CRASHES])
async def test_accelerator_is_skipped_when_it_runs_no_guest(host: Host, kvm: str) -> None:
    host.install(kvm=kvm)
    driver = host.driver()
    await driver.preflight()
    assert driver.version == "9.0.1 (tcg)"
    assert host.take_trials() == ["kvm", "tcg"]


async def test_accelerator_is_tested_again_after_a_qemu_upgrade(host: Host) -> None:
    host.install(kvm=KVM_HANGS)
    await host.driver().preflight()
    host.install(kvm=KVM_RUNS, version="9.0.2")
    driver = host.driver()
    await driver.preflight()
    assert driver.version == "9.0.2 (kvm)"


async def test_accelerator_is_tested_again_after_a_reboot(host: Host) -> None:
    host.install(kvm=KVM_RUNS)
    await host.driver().preflight()
    cache = host.folder / "state" / accelerator.CACHE_FILE
    cached = json.loads(cache.read_text())
    cached["key"][3] = "another boot"
    cache.write_text(json.dumps(cached))
    host.take_trials()
    await host.driver().preflight()
    assert host.take_trials() == ["kvm"]


@pytest.mark.parametrize("garbage", ["", "[]", "{", '{"key": 1}'])
async def test_corrupt_accelerator_cache_is_ignored(host: Host, garbage: str) -> None:
    host.install(kvm=KVM_RUNS)
    (host.folder / "state").mkdir()
    (host.folder / "state" / accelerator.CACHE_FILE).write_text(garbage)
    await host.driver().preflight()
    assert host.take_trials() == ["kvm"]


async def test_configured_accelerator_must_work(host: Host) -> None:
    host.install(kvm=KVM_HANGS)
    with pytest.raises(HypervisorUnavailableError, match=r"kvm: a guest ran no code for 0\.3 s.*accelerator to auto"):
        await host.driver("kvm").preflight()
    await host.driver("tcg").preflight()
    assert host.take_trials() == ["kvm", "tcg"]


async def test_preflight_reports_each_failed_accelerator(host: Host) -> None:
    host.install(kvm=KVM_CRASHES, tcg="exit 3")
    with pytest.raises(HypervisorUnavailableError, match=r"kvm: exit code 1: no such device; tcg: exit code 3"):
        await host.driver().preflight()
    assert not (host.folder / "state").exists(), "a failure is not cached"


async def test_missing_program_error_names_its_package(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ProgramMissingError, match=r"qemu-system-x86_64 was not found.*Debian package qemu-system-x86 .*Homebrew"
    ):
        await host.driver().preflight()
    host.install(kvm=KVM_RUNS)
    (host.bin / "qemu-img").unlink()
    monkeypatch.setenv("PATH", str(host.folder))
    with pytest.raises(ProgramMissingError, match=r"qemu-img was not found.*qemu-utils"):
        await host.driver().preflight()


async def test_observer_gets_every_qemu_command(host: Host) -> None:
    host.install(kvm=KVM_HANGS)
    reports: list[CommandReport] = []
    await host.driver(observer=reports.append).preflight()
    assert [(report.program, str(report.outcome)) for report in reports] == [
        ("qemu-system-x86_64", "ok"),
        ("qemu-system-x86_64", "timeout"),
        ("qemu-system-x86_64", "failed"),
    ]


@pytest.mark.qemu
@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
async def test_trial_firmware_runs_on_the_real_emulator(arch: str, tmp_path: Path) -> None:
    binary = shutil.which(f"qemu-system-{arch}")
    if binary is None:
        if arch == platform.machine():
            pytest.fail(f"this machine's own emulator is missing: {machine_for(None).remedy}")
        pytest.skip(f"qemu-system-{arch} is not installed")
    config = QemuConfig(accelerator="tcg", binary=binary)
    driver = QemuHypervisor(
        config, vms_dir=tmp_path / "vms", templates_dir=tmp_path / "templates", state_dir=tmp_path / "state"
    )
    await driver.preflight()
    assert driver.version.endswith("(tcg)")


@pytest.mark.qemu
@pytest.mark.skipif(not Path("/dev/kvm").exists(), reason="there is no /dev/kvm")
async def test_selected_real_accelerator_runs_guests(tmp_path: Path) -> None:
    """The selection must not hang, whether /dev/kvm works here or not."""
    driver = QemuHypervisor(
        QemuConfig(), vms_dir=tmp_path / "vms", templates_dir=tmp_path / "templates", state_dir=tmp_path / "state"
    )
    await driver.preflight()
    assert driver.version.endswith(("(kvm)", "(tcg)"))
