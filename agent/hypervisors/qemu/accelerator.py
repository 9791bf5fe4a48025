"""The selection of an accelerator that works on this host: runs guest code with a deadline, and caches the result.

An open /dev/kvm does not suffice: if the host is itself a VM, KVM can accept every call and then never run the guest.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from agent.hypervisors.contract import HypervisorUnavailableError
from agent.hypervisors.qemu.cmdline import COMMON_ARGUMENTS, accelerated
from agent.processes.boot import boot_id
from agent.processes.command import Command, CommandRunner, CommandTimeoutError

if TYPE_CHECKING:
    from agent.hypervisors.qemu.machine import Machine

log = structlog.get_logger()

PREFERRED: Final = {"darwin": ("hvf", "tcg"), "linux": ("kvm", "tcg")}
TRIAL_S: Final = {"kvm": 5.0, "hvf": 5.0, "tcg": 30.0}
"""Time limit for five instructions, mostly the start of QEMU: 0.1 s on an idle machine. There is no fallback from
emulation, so its limit suits a machine under load."""
CACHE_FILE: Final = "qemu-accelerator.json"


async def select_accelerator(
    runner: CommandRunner, machine: Machine, binary: Path, *, version: str, wanted: str, state_dir: Path
) -> str:
    """Return the first accelerator that runs guest code. `wanted` is `auto`, or the name of the only one to try.

    Caches the result in `state_dir` until QEMU, the kernel or the boot changes. Raises `HypervisorUnavailableError`
    with the reason why each trial failed.
    """
    key = [str(binary), version, platform.release(), await asyncio.to_thread(boot_id), wanted]
    cache = state_dir / CACHE_FILE
    if cached := await asyncio.to_thread(_read_cache, cache, key):
        return cached
    failures: dict[str, str] = {}
    for accelerator in PREFERRED.get(sys.platform, ("tcg",)) if wanted == "auto" else (wanted,):
        failure = await _try(runner, machine, binary, accelerator)
        if failure is None:
            log.info("accelerator-selected", accelerator=accelerator, failed=failures)
            await asyncio.to_thread(_write_cache, cache, key, accelerator)
            return accelerator
        log.warning("accelerator-failed", accelerator=accelerator, error=failure)
        failures[accelerator] = failure
    reasons = "; ".join(f"{name}: {failure}" for name, failure in failures.items())
    raise HypervisorUnavailableError(
        f"{binary} runs no guest here ({reasons})",
        remedy="set hypervisor.qemu.accelerator to auto" if wanted != "auto" else machine.remedy,
    )


async def _try(runner: CommandRunner, machine: Machine, binary: Path, accelerator: str) -> str | None:
    """Boot the trial firmware. Returns why the accelerator does not work, None if it works."""
    with tempfile.TemporaryDirectory(prefix="hearth-") as folder:
        firmware = Path(folder, "trial.bin")
        await asyncio.to_thread(firmware.write_bytes, machine.trial.firmware())
        argv = (
            *(str(binary), *COMMON_ARGUMENTS, *accelerated(machine, accelerator), "-m", "64M", "-no-reboot"),
            *("-bios", str(firmware), *machine.trial.arguments),
        )
        try:
            result = await runner.run(Command(argv, timeout_s=TRIAL_S[accelerator]), check=False)
        except CommandTimeoutError:
            return f"a guest ran no code for {TRIAL_S[accelerator]:g} s"
    if result.exit_code == machine.trial.exit_code:
        return None
    last_line = result.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    return f"exit code {result.exit_code}: {last_line}" if last_line else f"exit code {result.exit_code}"


def _read_cache(cache: Path, key: list[str]) -> str | None:
    try:
        cached = json.loads(cache.read_bytes())
        return str(cached["accelerator"]) if cached["key"] == key else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _write_cache(cache: Path, key: list[str], accelerator: str) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    new = cache.with_suffix(".new")
    new.write_text(json.dumps({"key": key, "accelerator": accelerator}))
    os.replace(new, cache)
