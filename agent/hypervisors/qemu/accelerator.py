"""Which accelerator works here: proven by running guest code with a deadline, and remembered.

An open /dev/kvm proves nothing: where the host is itself a VM, KVM can take every call and then never run the guest.
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
from agent.hypervisors.qemu.cmdline import ALWAYS, accelerated
from agent.processes.boot import boot_id
from agent.processes.command import Command, CommandRunner, CommandTimeoutError

if TYPE_CHECKING:
    from agent.hypervisors.qemu.machine import Machine

log = structlog.get_logger()

PREFERRED: Final = {"darwin": ("hvf", "tcg"), "linux": ("kvm", "tcg")}
TRIAL_S: Final = {"kvm": 5.0, "hvf": 5.0, "tcg": 30.0}
"""Time for five instructions, mostly spent starting QEMU: 0.1 s on an idle machine. Emulation has nothing after it to
fall back to, so it gets the time of a machine under load."""
CACHE_FILE: Final = "qemu-accelerator.json"


async def prove_accelerator(
    runner: CommandRunner, machine: Machine, binary: Path, *, version: str, wanted: str, state_dir: Path
) -> str:
    """Return the first accelerator that runs guest code, of those to try for `wanted` (`auto`, or one by name).

    The answer is kept in `state_dir` until QEMU, the kernel or the boot changes. Raises `HypervisorUnavailableError`
    telling what became of each trial.
    """
    key = [str(binary), version, platform.release(), await asyncio.to_thread(boot_id), wanted]
    cache = state_dir / CACHE_FILE
    if known := await asyncio.to_thread(_recall, cache, key):
        return known
    failures: dict[str, str] = {}
    for accelerator in PREFERRED.get(sys.platform, ("tcg",)) if wanted == "auto" else (wanted,):
        failure = await _try(runner, machine, binary, accelerator)
        if failure is None:
            log.info("accelerator-proven", accelerator=accelerator, failed=failures)
            await asyncio.to_thread(_remember, cache, key, accelerator)
            return accelerator
        log.warning("accelerator-failed", accelerator=accelerator, error=failure)
        failures[accelerator] = failure
    reasons = "; ".join(f"{name}: {failure}" for name, failure in failures.items())
    raise HypervisorUnavailableError(
        f"{binary} runs no guest here ({reasons})",
        remedy="set hypervisor.qemu.accelerator to auto" if wanted != "auto" else machine.remedy,
    )


async def _try(runner: CommandRunner, machine: Machine, binary: Path, accelerator: str) -> str | None:
    """Boot the trial firmware. Returns why the accelerator does not work, or None when it does."""
    with tempfile.TemporaryDirectory(prefix="hearth-") as folder:
        firmware = Path(folder, "trial.bin")
        await asyncio.to_thread(firmware.write_bytes, machine.trial.firmware())
        argv = (
            *(str(binary), *ALWAYS, *accelerated(machine, accelerator), "-m", "64M", "-no-reboot"),
            *("-bios", str(firmware), *machine.trial.arguments),
        )
        try:
            result = await runner.run(Command(argv, timeout_s=TRIAL_S[accelerator]), check=False)
        except CommandTimeoutError:
            return f"a guest did nothing for {TRIAL_S[accelerator]:g} s"
    if result.exit_code == machine.trial.exit_code:
        return None
    said = result.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    return f"exit code {result.exit_code}: {said}" if said else f"exit code {result.exit_code}"


def _recall(cache: Path, key: list[str]) -> str | None:
    try:
        remembered = json.loads(cache.read_bytes())
        return str(remembered["accelerator"]) if remembered["key"] == key else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _remember(cache: Path, key: list[str], accelerator: str) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    new = cache.with_suffix(".new")
    new.write_text(json.dumps({"key": key, "accelerator": accelerator}))
    os.replace(new, cache)
