"""Making and removing a VM's files. Blocking parts say so; nothing here touches a process."""

from __future__ import annotations

import os
import shutil
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

from agent.domain.errors import ErrorOrigin
from agent.hypervisors.contract import HypervisorError, VmExistsError
from agent.hypervisors.qemu import layout
from agent.hypervisors.qemu.firmware import choose_firmware, write_variables
from agent.processes.command import Command, CommandError, CommandRunner
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from pathlib import Path

    from agent.domain.model import LocalImage
    from agent.hypervisors.qemu.layout import Layout
    from agent.hypervisors.qemu.templates import Loan
    from agent.hypervisors.qemu.toolchain import Toolchain

CREATE_S: Final = 60.0


class UnfitImageError(HypervisorError):
    """The image is for another kind of machine than this hypervisor makes."""

    code = "unfit-image"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.IMAGE


async def make_clone(
    name: str, image: LocalImage, where: Layout, tools: Toolchain, runner: CommandRunner, *, loan: Loan | None = None
) -> None:
    """Make a VM's directory from an image, or from what a template of it lends: a thin overlay on that disk.

    It is made aside and renamed when whole. Raises `VmExistsError`, also for what an interrupted clone left behind,
    and `HypervisorError`.
    """
    _check_fit(image, tools)
    staging = where.partial(name)
    try:
        if loan is not None:
            await run_in_thread(partial(_take, where, name, image, loan))
            return
        await run_in_thread(partial(_begin, where, name))
        await runner.run(overlay(tools, staging / layout.DISK, "raw", str(image.disk)))
        await run_in_thread(partial(_write_variables, staging, image, tools))
        await run_in_thread(partial(_publish, where, name, image))
    except (OSError, CommandError) as error:
        raise HypervisorError(f"{name} cannot be cloned: {error}", remedy="check the data volume") from error


def overlay(tools: Toolchain, disk: Path, kind: str, below: str, *, size_bytes: int | None = None) -> Command:
    """Return the command that makes a thin disk on another, which is named as seen from the new one's folder.

    With `size_bytes`, that of the one below, which then need not be there yet.
    """
    size = () if size_bytes is None else ("-u", str(size_bytes))
    argv = (str(tools.disk_tool), "create", "-q", "-f", "qcow2", "-F", kind, "-b", below, *size[:1], str(disk))
    return Command((*argv, *size[1:]), timeout_s=CREATE_S)


def remove_vm(where: Layout, name: str) -> None:
    """Remove all files of a VM, half-made ones included. Blocks: call it in a thread. Raises `HypervisorError`."""
    for directory in (where.vm(name), where.partial(name)):
        try:
            shutil.rmtree(directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise HypervisorError(f"{directory} cannot be removed: {error}") from error


def _check_fit(image: LocalImage, tools: Toolchain) -> None:
    if image.os != "linux":
        raise UnfitImageError(f"image {image.digest} is for {image.os}, the qemu driver runs linux guests")
    if image.arch != tools.machine.arch:
        raise UnfitImageError(f"image {image.digest} is for {image.arch}, {tools.emulator} runs {tools.machine.arch}")


def _begin(where: Layout, name: str) -> None:
    where.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    if where.vm(name).exists():
        raise VmExistsError(f"a VM named {name} exists")
    try:
        where.partial(name).mkdir(mode=0o700)
    except FileExistsError:
        raise VmExistsError(f"a half-made VM named {name} exists", remedy="delete it first") from None


def _take(where: Layout, name: str, image: LocalImage, loan: Loan) -> None:
    """Make a VM of what a template lends."""
    _begin(where, name)
    loan.hand_out(where.partial(name))
    _publish(where, name, image)


def _write_variables(staging: Path, image: LocalImage, tools: Toolchain) -> None:
    if firmware := choose_firmware(tools.firmware, tools.machine, image.nvram):
        write_variables(firmware, image.nvram, staging / layout.NVRAM)


def _publish(where: Layout, name: str, image: LocalImage) -> None:
    where.partial(name).joinpath(layout.IMAGE).write_text(f"{image.digest}\n", encoding="ascii")
    os.rename(where.partial(name), where.vm(name))
