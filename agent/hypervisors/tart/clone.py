"""The creation and removal of a VM. Checks what Tart reports against the files on the disk."""

from __future__ import annotations

import shutil
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from agent.hypervisors.contract import HypervisorError, VmExistsError, VmNotFoundError
from agent.hypervisors.tart.layout import TartVmRecord
from agent.processes.command import CommandError
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from typing import Any

    from agent.domain.model import LocalImage
    from agent.hypervisors.contract import VmSpec
    from agent.hypervisors.tart.layout import TartLayout
    from agent.hypervisors.tart.tool import TartTool

log = structlog.get_logger()

_MIB: Final = 2**20


async def make_clone(spec: VmSpec, image: LocalImage, where: TartLayout, tool: TartTool) -> None:
    """Make a stopped VM of this size, with a network address of its own, from an image in Tart's cache.

    Raises `VmExistsError`, also if an interrupted clone left files, `HypervisorError` and `CommandError`.
    """
    reference = where.reference(image.directory)
    try:
        await run_in_thread(partial(_claim, where, spec.name))
        await tool.run("clone", reference, spec.name)
        before = await run_in_thread(partial(_read_new_config, where, spec.name))
        await tool.run("set", *_settings(spec, before), spec.name)
        await run_in_thread(partial(_complete, where, spec, image, before))
    except OSError as error:
        raise HypervisorError(f"{spec.name} cannot be cloned: {error}", remedy="check the volume of Tart") from error


async def remove_vm(name: str, where: TartLayout, tool: TartTool) -> None:
    """Remove a stopped VM: by `tart delete` if Tart lists it, then the files that Tart left or does not list.

    Raises `HypervisorError`.
    """
    if await run_in_thread(partial(where.is_visible, name)):
        try:
            await tool.run("delete", name)
        except VmNotFoundError:
            pass
        except CommandError as error:
            # The caller has checked that it does not run, by process table and lock; Tart would check the lock only.
            log.warning("tart-delete-failed", vm=name, error=str(error))
    try:
        await run_in_thread(partial(_remove_files, where, name))
    except OSError as error:
        raise HypervisorError(f"{name} cannot be removed: {error}") from error


def _claim(where: TartLayout, name: str) -> None:
    """Claim the name: one of two concurrent clones gets it, and after a crash the VM is listed."""
    if where.vm(name).exists():
        raise VmExistsError(f"a VM named {name} exists")
    where.records.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        where.record(name).mkdir(mode=0o700)
    except FileExistsError:
        raise VmExistsError(f"a VM named {name} exists or is being cloned", remedy="delete it first") from None


def _read_new_config(where: TartLayout, name: str) -> dict[str, Any]:
    if not where.is_visible(name):
        raise HypervisorError(f"`tart clone` reported success for {name}, but {where.vm(name)} is incomplete")
    return where.config(name)


def _settings(spec: VmSpec, config: dict[str, Any]) -> tuple[str, ...]:
    """Return the arguments of `tart set`. Without --display-refit it resets that setting."""
    refit = ("--display-refit",) if config.get("displayRefit") else ()
    return ("--random-mac", "--cpu", str(spec.size.cpus), "--memory", str(spec.size.memory_mib), *refit)


def _complete(where: TartLayout, spec: VmSpec, image: LocalImage, before: dict[str, Any]) -> None:
    after = where.config(spec.name)
    sized = (after.get("cpuCount"), after.get("memorySize")) == (spec.size.cpus, spec.size.memory_mib * _MIB)
    if not sized or after.get("macAddress") == before.get("macAddress"):
        raise HypervisorError(f"`tart set` reported success for {spec.name}, but its configuration did not change")
    where.write_record(spec.name, TartVmRecord(image.digest, spec.ports))


def _remove_files(where: TartLayout, name: str) -> None:
    for directory in (where.vm(name), where.record(name)):
        if directory.is_dir():
            shutil.rmtree(directory)
