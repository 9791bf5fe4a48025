"""The commands that list, configure, stop and suspend VMs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from tests.simulators.tartsim.errors import StateError, TartError, UsageError
from tests.simulators.tartsim.parse import parse

if TYPE_CHECKING:
    from pathlib import Path

    from tests.simulators.tartsim.faults import Faults
    from tests.simulators.tartsim.home import Home, VmDir

GB: Final = 10**9
FILES: Final = ("config.json", "disk.img", "nvram.bin")


def list_vms(home: Home, faults: Faults, argv: list[str]) -> None:
    """`tart list`: fails as a whole if one VM cannot be read (T11)."""
    parsed = parse(argv, flags="-q --quiet", options="--source --format", names=0)
    source = parsed.option("--source", "")
    rows = [_row("local", vm.name, vm) for vm in home.local()] if source in ("", "local") else []
    rows += [_row("OCI", name, entry) for name, entry in home.entries()] if source in ("", "oci") else []
    rows = [row for row in rows if row["Name"] not in faults.get("omit", ())]
    rows += [_invented(name) for name in faults.get("invent", ())]
    if parsed.flags & {"-q", "--quiet"}:
        sys.stdout.write("".join(f"{row['Name']}\n" for row in rows))
    else:
        _print(rows, parsed.option("--format", "text"))


def get(home: Home, faults: Faults, argv: list[str]) -> None:
    """`tart get`: of local VMs only."""
    parsed = parse(argv, options="--format", names=1)
    vm = home.open(parsed.names[0])
    config, display = vm.config(), vm.config().get("display", {"width": 1024, "height": 768})
    row = {
        "OS": config.get("os", "darwin"),
        "CPU": config["cpuCount"],
        "Memory": config["memorySize"] >> 20,
        "Disk": _size(vm.path, allocated=False) // GB,
        "DiskFormat": config.get("diskFormat", "raw"),
        "Size": f"{_size(vm.path, allocated=True) / GB:.3f}",
        "Display": f"{display['width']}x{display['height']}{display.get('unit', '')}",
        "Running": vm.state == "running",
        "State": vm.state,
    }
    _print(row if parsed.option("--format", "text") == "json" else [row], parsed.option("--format", "text"))


def set_vm(home: Home, faults: Faults, argv: list[str]) -> None:
    """`tart set`: rewrites `config.json`, and resets the display's refit without --display-refit (T8)."""
    parsed = parse(
        argv,
        flags="--random-mac --random-serial --display-refit --no-display-refit",
        options="--cpu --memory --display --disk-size",
        names=1,
    )
    vm = home.open(parsed.names[0])
    config = vm.config()
    config["displayRefit"] = "--display-refit" in parsed.flags or None
    if "--cpu" in parsed.options:
        config["cpuCount"] = _at_least(config, "cpuCountMin", parsed.number("--cpu", 0), "CPUs")
    if "--memory" in parsed.options:
        config["memorySize"] = _at_least(config, "memorySizeMin", parsed.number("--memory", 0) << 20, "bytes of memory")
    if "--random-mac" in parsed.flags:
        config["macAddress"] = random_mac()
    vm.write_config({key: value for key, value in config.items() if value is not None})


def random_mac() -> str:
    """Return a locally administered address."""
    return bytes([0x5E, *random.randbytes(5)]).hex(":")


def stop(home: Home, faults: Faults, argv: list[str]) -> None:
    """`tart stop`: SIGINT, which is a power cut (T6), then SIGKILL; of a suspended VM, deletes its snapshot (T7)."""
    parsed = parse(argv, options="-t --timeout", names=1)
    vm, name = home.open(parsed.names[0]), parsed.names[0]
    timeout_s = parsed.number("--timeout" if "--timeout" in parsed.options else "-t", 30)
    if vm.state == "suspended":
        vm.state_path.unlink()
        return
    pid = vm.lock_holder
    if not pid:
        raise StateError(f'VM "{name}" is not running')
    deadline_s = time.monotonic() + timeout_s
    if timeout_s and _signal(pid, signal.SIGINT):
        while time.monotonic() < deadline_s:
            if vm.lock_holder != pid:
                return
            time.sleep(0.1)
    if not _signal(pid, signal.SIGKILL):
        raise TartError(f"failed to forcefully terminate the VM {name}")


def suspend(home: Home, faults: Faults, argv: list[str]) -> None:
    """`tart suspend`: only sends a signal, and returns before the VM is suspended (T17)."""
    name = parse(argv, names=1).names[0]
    pid = home.open(name).lock_holder
    if not pid:
        raise StateError(f'VM "VM "{name}" is not running" is not running')
    _signal(pid, signal.SIGUSR1)


def _signal(pid: int, number: signal.Signals) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def _at_least(config: dict[str, Any], key: str, value: int, unit: str) -> int:
    if config.get("os", "darwin") == "darwin" and value < config.get(key, 0):
        raise TartError(f"VM should have at least {config[key]} {unit} (requested {value})")
    if value < 1:
        raise UsageError("the value must be positive")
    return value


def _row(source: str, name: str, vm: VmDir) -> dict[str, Any]:
    vm.config()
    return {
        "Source": source,
        "Name": name,
        "Disk": _size(vm.path, allocated=False) // GB,
        "Size": _size(vm.path, allocated=True) // GB,
        "Accessed": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(vm.path.stat().st_atime)),
        "Running": vm.state == "running",
        "State": vm.state,
    }


def _invented(name: str) -> dict[str, Any]:
    about = {"Source": "local", "Name": name, "Disk": 50, "Size": 20, "Accessed": "2026-01-01T00:00:00Z"}
    return about | {"Running": True, "State": "running"}


def _size(path: Path, *, allocated: bool) -> int:
    stats = [(path / name).stat() for name in FILES]
    return sum(stat.st_blocks * 512 if allocated else stat.st_size for stat in stats)


def _print(rows: Any, form: str) -> None:
    if form == "json":
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    lines = [list(rows[0])] if rows else []
    lines += [[str(value) for value in row.values()] for row in rows]
    sys.stdout.write("".join(" ".join(line) + "\n" for line in lines))
