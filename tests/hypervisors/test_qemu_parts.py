"""The pure modules of the qemu driver, and small ones that use the host."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent.domain.model import VmSize
from agent.domain.names import vm_name
from agent.hypervisors.contract import HypervisorUnavailableError, VmSpec
from agent.hypervisors.qemu import firmware as firmware_module
from agent.hypervisors.qemu import layout
from agent.hypervisors.qemu.cmdline import LaunchOptions, command_line, mac_address
from agent.hypervisors.qemu.firmware import (
    Firmware,
    choose_firmware,
    find_firmware,
    parse_description,
    write_variables,
)
from agent.hypervisors.qemu.layout import QemuLayout
from agent.hypervisors.qemu.machine import machine_for
from agent.hypervisors.qemu.monitor import parse_forwards
from agent.hypervisors.qemu.processes import find_vm_processes, working_folder
from agent.hypervisors.qemu.sockets import ADDRESS_LIMIT_BYTES, connect, listen
from tests.hypervisors.rigs import spec

if TYPE_CHECKING:
    import socket

X86 = machine_for("qemu-system-x86_64")
ARM = machine_for("/opt/homebrew/bin/qemu-system-aarch64")
ROOT = Path("/data, with commas/vms")


def launch(**changes: Any) -> list[str]:
    arguments: dict[str, Any] = {
        "binary": Path("/usr/bin/qemu-system-x86_64"),
        "machine": X86,
        "accelerator": "tcg",
        "spec": VmSpec("hearth-small-1", VmSize(cpus=3, memory_mib=512), (22, 8080)),
        "directory": ROOT / "hearth-small-1",
        "firmware": None,
        "monitor_fd": 7,
        "agent_fd": 8,
        "resume_fd": 9,
    }
    return command_line(LaunchOptions(**(arguments | changes)))


def option(argv: list[str], name: str) -> list[str]:
    return [argv[index + 1] for index, word in enumerate(argv) if word == name]


def test_command_line_contains_the_options() -> None:
    argv = launch()
    assert argv[0] == "/usr/bin/qemu-system-x86_64"
    assert option(argv, "-smp") == ["3"]
    assert option(argv, "-m") == ["512M"]
    assert option(argv, "-machine") == ["q35,accel=tcg"]
    assert option(argv, "-cpu") == ["max"]
    assert option(launch(accelerator="kvm"), "-cpu") == ["host"]
    assert option(argv, "-netdev") == ["user,id=net,hostfwd=tcp:127.0.0.1:0-:22,hostfwd=tcp:127.0.0.1:0-:8080"]
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(argv)
    assert not option(argv, "-incoming")
    assert option(launch(incoming=True), "-incoming") == ["defer"]


def test_vm_process_is_recognised_by_its_command_line() -> None:
    assert working_folder(launch(), ROOT) == Path("hearth-small-1")
    assert working_folder(launch(), Path("/elsewhere")) is None
    assert working_folder([], ROOT) is None
    assert working_folder(["qemu-system-x86_64", "-pidfile"], ROOT) is None
    assert working_folder(["qemu-system-x86_64", "-pidfile", "/run/other.pid"], ROOT) is None
    assert working_folder(["less", *launch()[1:]], ROOT) is None, "a pager of a VM's file is not a VM"
    below = {"template.partial": Path("hearth-small-1/template.partial"), "elsewhere": None, "": Path("hearth-small-1")}
    for folder, found in below.items():
        argv = ["qemu-system-x86_64", "-pidfile", str(ROOT / "hearth-small-1" / folder / "qemu.pid")]
        assert working_folder(argv, ROOT) == found, "the helper for a template is not the VM itself"
    assert working_folder(["qemu-system-x86_64", "-pidfile", str(ROOT / "qemu.pid")], ROOT) is None


def test_command_line_has_uefi_code_and_variables() -> None:
    drives = [
        json.loads(text) for text in option(launch(firmware=Firmware(Path("/c,ode"), Path("/vars"))), "-blockdev")
    ]
    files = {drive["node-name"]: drive for drive in drives}
    assert files["code-file"]["filename"] == "/c,ode"
    assert files["code"]["read-only"] is True
    assert files["nvram-file"]["filename"] == layout.NVRAM


def test_mac_addresses_are_unique_and_stable() -> None:
    addresses = {mac_address(spec(number).name) for number in range(100)}
    assert len(addresses) == 100
    assert all(address.startswith("52:54:00:") and len(address) == 17 for address in addresses)
    assert mac_address("one") == mac_address("one")


def test_forwarded_ports_are_parsed() -> None:
    text = (
        "Hub -1 (net):\r\n"
        "  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n"
        "  TCP[ESTABLISHED]   20       10.0.2.15 40100   93.184.216.34   443     0     0\r\n"
        "  TCP[HOST_FORWARD]   8       127.0.0.1 44925       10.0.2.15    22     0     0\r\n"
        "  UDP[236 sec]        9       10.0.2.15 33333        10.0.2.3    53     0     0\r\n"
        "  TCP[HOST_FORWARD]  13       127.0.0.1 33019       10.0.2.15  8080     0     0\r\n"
    )
    assert parse_forwards(text) == {22: 44925, 8080: 33019}
    assert parse_forwards("") == {}


def test_machine_matches_the_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (X86.arch, ARM.arch) == ("amd64", "arm64")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert machine_for(None) is ARM
    with pytest.raises(HypervisorUnavailableError, match="sparc64 are not supported"):
        machine_for("/usr/bin/qemu-system-sparc64")


def test_trial_firmware_has_the_format_of_qemu() -> None:
    for machine in (X86, ARM):
        image = machine.trial.firmware()
        assert len(image) == 64 << 10
        assert image.startswith(machine.trial.code)
        assert image[-16:].startswith(machine.trial.reset)


def description(**changes: Any) -> dict[str, Any]:
    """Return a firmware description like that of Debian's ovmf package."""
    return {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": "/OVMF_CODE.fd", "format": "raw"},
            "nvram-template": {"filename": "/OVMF_VARS.fd", "format": "raw"},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
        "features": ["acpi-s3"],
    } | changes


def test_firmware_description_is_accepted_when_it_fits() -> None:
    assert parse_description(description(), X86) == Firmware(Path("/OVMF_CODE.fd"), Path("/OVMF_VARS.fd"))
    assert parse_description(description(), ARM) is None
    assert parse_description(description(features=["secure-boot"]), X86) is None
    assert parse_description(description(**{"interface-types": ["bios"]}), X86) is None
    assert parse_description(description(mapping={"device": "memory", "filename": "/x"}), X86) is None


def test_firmware_is_found_among_invalid_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firmware_module, "SYSTEM_FOLDERS", (tmp_path / "etc", tmp_path / "usr"))
    code, variables = tmp_path / "code.fd", tmp_path / "vars.fd"
    code.touch()
    variables.touch()
    good = description()
    good["mapping"]["executable"]["filename"] = str(code)
    good["mapping"]["nvram-template"]["filename"] = str(variables)
    for name, text in {
        "10-broken.json": "{",
        "20-other.json": "[]",
        "30-uninstalled.json": json.dumps(description()),
        "40-good.json": json.dumps(good),
    }.items():
        (tmp_path / "usr").mkdir(exist_ok=True)
        (tmp_path / "usr" / name).write_text(text)
    assert find_firmware(X86, Path("/nowhere/bin/qemu-system-x86_64")) == (Firmware(code, variables),)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "40-good.json").write_text("{}")  # the administrator hides the file of the package
    assert find_firmware(X86, Path("/nowhere/bin/qemu-system-x86_64")) == ()


def test_missing_uefi_firmware_error_names_the_package(tmp_path: Path) -> None:
    assert choose_firmware((), X86, None) is None, "without NVRAM a PC boots from its BIOS"
    with pytest.raises(HypervisorUnavailableError, match="Debian package ovmf"):
        choose_firmware((), X86, tmp_path / "nvram.bin")
    with pytest.raises(HypervisorUnavailableError, match="qemu-efi-aarch64"):
        choose_firmware((), ARM, None)


def test_uefi_variables_are_the_images_when_readable(tmp_path: Path) -> None:
    def variables(name: str, size: int, content: bytes = b"") -> Path:
        path = tmp_path / name
        path.write_bytes((b"\0" * 40 + b"_FVH" + content).ljust(size, b"\0"))
        return path

    small = Firmware(tmp_path / "code-small", variables("small", 100))
    large = Firmware(tmp_path / "code-large", variables("large", 200))
    ours = variables("ours", 200, b"boot order")
    assert choose_firmware((small, large), X86, ours) == large
    write_variables(large, ours, tmp_path / "clone")
    assert (tmp_path / "clone").read_bytes() == ours.read_bytes()

    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"NV" * 100)
    assert choose_firmware((small, large), X86, foreign) == large
    write_variables(large, foreign, tmp_path / "clone")
    assert (tmp_path / "clone").read_bytes() == large.variables.read_bytes()
    foreign.write_bytes(b"NV")
    assert choose_firmware((small, large), X86, foreign) == small


@pytest.mark.parametrize("depth", [1, 60])
def test_sockets_work_with_paths_of_any_length(depth: int, tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["folder"] * depth)
    folder.mkdir(parents=True)
    path = folder / "monitor.sock"
    assert (len(str(path)) > ADDRESS_LIMIT_BYTES) == (depth > 1)
    listen(path).close()
    with pytest.raises(ConnectionRefusedError):
        connect(path)
    with listen(path) as server, connect(path) as client:
        peer, _ = server.accept()
        with peer:
            client.sendall(b"hello")
            assert peer.recv(5) == b"hello"
    assert path.is_socket()


def test_connect_does_not_block_when_the_backlog_is_full(tmp_path: Path) -> None:
    with listen(tmp_path / "s") as server:
        server.listen(1)
        clients: list[socket.socket] = []
        with pytest.raises(BlockingIOError):
            clients.extend(connect(tmp_path / "s") for _ in range(10))
        for client in clients:
            client.close()


def test_layout_names_complete_incomplete_and_foreign_vms(tmp_path: Path) -> None:
    where = QemuLayout(tmp_path / "vms")
    assert where.names() == set()
    whole, half = spec(1).name, spec(2).name
    for name in (whole, f"{half}.partial", "notes", "notes.partial"):
        (tmp_path / "vms" / name).mkdir(parents=True)
    (tmp_path / "vms" / ".DS_Store").touch()
    (tmp_path / "vms" / "link").symlink_to(tmp_path)
    assert where.names() == {whole, half, "notes", "notes.partial"}
    assert [where.is_ours(name) for name in (whole, half, "notes", "hearth-small")] == [True, True, False, False]


def test_vm_without_disk_is_damaged_unless_incomplete(tmp_path: Path) -> None:
    where, name = QemuLayout(tmp_path), vm_name("ci", "0" * 26)
    assert str(where.vm(name)) in where.damage(name)
    where.partial(name).mkdir()
    assert where.damage(name) == ""
    where.partial(name).rename(where.vm(name))
    assert layout.DISK in where.damage(name)
    (where.vm(name) / layout.DISK).touch()
    assert where.damage(name) == ""


def test_layout_resolves_symlinks_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    assert QemuLayout(tmp_path / "alias" / "vms").root == tmp_path / "real" / "vms"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process of another user")
@pytest.mark.parametrize(("user", "count"), [(None, 1), (65534, 0)])
def test_process_of_another_user_is_not_a_vm(tmp_path: Path, user: int | None, count: int) -> None:
    """Any user can start a process with our file in its arguments. The agent would signal it, as root."""
    argv = ["qemu-system-x86_64", "-c", "read line", "-pidfile", str(tmp_path / "hearth-small-1" / layout.PID_FILE)]
    with subprocess.Popen(argv, executable="/bin/sh", stdin=subprocess.PIPE, user=user, cwd="/") as process:
        found = find_vm_processes(tmp_path)
        process.communicate(b"\n")
    assert len(found) == count
