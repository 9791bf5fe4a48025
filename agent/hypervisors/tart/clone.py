"""Making and removing a VM. Tart's words are checked against what lies on the disk."""

from __future__ import annotations

import shutil
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from agent.hypervisors.contract import HypervisorError, VmExistsError, VmNotFoundError
from agent.hypervisors.tart.layout import Record
from agent.processes.command import CommandError
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from typing import Any

    from agent.domain.model import LocalImage
    from agent.hypervisors.contract import VmSpec
    from agent.hypervisors.tart.layout import Layout
    from agent.hypervisors.tart.tool import TartTool

log = structlog.get_logger()

_MIB: Final = 2**20


async def make_clone(spec: VmSpec, image: LocalImage, where: Layout, tool: TartTool) -> None:
    """Make a stopped VM of this size, with a network address of its own, from an image in Tart's cache.

    Raises `VmExistsError`, also for what an interrupted clone left behind, `HypervisorError` and `CommandError`.
    """
    reference = where.reference(image.directory)
    try:
        await run_in_thread(partial(_claim, where, spec.name))
        await tool.run("clone", reference, spec.name)
        before = await run_in_thread(partial(_config_of_new, where, spec.name))
        await tool.run("set", *_settings(spec, before), spec.name)
        await run_in_thread(partial(_publish, where, spec, image, before))
    except OSError as error:
        raise HypervisorError(f"{spec.name} cannot be cloned: {error}", remedy="check the volume of Tart") from error


async def remove_vm(name: str, where: Layout, tool: TartTool) -> None:
    """Remove all of a VM that does not run: by Tart where it sees one, and what Tart does not see or leaves.

    Raises `HypervisorError`.
    """
    if await run_in_thread(partial(where.visible, name)):
        try:
            await tool.run("delete", name)
        except VmNotFoundError:
            pass
        except CommandError as error:
            # That nothing runs was seen in the process table and by the lock, which is all that Tart would look at.
            log.warning("tart-did-not-delete", vm=name, error=str(error))
    try:
        await run_in_thread(partial(_sweep, where, name))
    except OSError as error:
        raise HypervisorError(f"{name} cannot be removed: {error}") from error


def _claim(where: Layout, name: str) -> None:
    """Take the name: of two clones at once one gets it, and a crash from here on leaves a VM that is listed."""
    if where.vm(name).exists():
        raise VmExistsError(f"a VM named {name} exists")
    where.records.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        where.record(name).mkdir(mode=0o700)
    except FileExistsError:
        raise VmExistsError(f"a VM named {name} exists or is being made", remedy="delete it first") from None


def _config_of_new(where: Layout, name: str) -> dict[str, Any]:
    if not where.visible(name):
        raise HypervisorError(f"`tart clone` said that it made {name}, but {where.vm(name)} is not whole")
    return where.config(name)


def _settings(spec: VmSpec, config: dict[str, Any]) -> tuple[str, ...]:
    """Return the arguments of `tart set`, which forgets whether the display refits unless it is told again."""
    refit = ("--display-refit",) if config.get("displayRefit") else ()
    return ("--random-mac", "--cpu", str(spec.size.cpus), "--memory", str(spec.size.memory_mib), *refit)


def _publish(where: Layout, spec: VmSpec, image: LocalImage, before: dict[str, Any]) -> None:
    after = where.config(spec.name)
    sized = (after.get("cpuCount"), after.get("memorySize")) == (spec.size.cpus, spec.size.memory_mib * _MIB)
    if not sized or after.get("macAddress") == before.get("macAddress"):
        raise HypervisorError(f"`tart set` said that it changed {spec.name}, but its configuration is another")
    where.write_record(spec.name, Record(image.digest, spec.ports))


def _sweep(where: Layout, name: str) -> None:
    for directory in (where.vm(name), where.record(name)):
        if directory.is_dir():
            shutil.rmtree(directory)
