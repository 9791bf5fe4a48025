"""The creation and removal of a VM's files. Starts and ends no VM process."""

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
    from agent.hypervisors.qemu.layout import QemuLayout
    from agent.hypervisors.qemu.templates import TemplateFiles
    from agent.hypervisors.qemu.toolchain import Toolchain

CREATE_S: Final = 60.0


class UnfitImageError(HypervisorError):
    """The image is for another operating system or architecture than this driver runs."""

    code = "unfit-image"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.IMAGE


async def make_clone(
    name: str,
    image: LocalImage,
    where: QemuLayout,
    tools: Toolchain,
    runner: CommandRunner,
    *,
    template: TemplateFiles | None = None,
) -> None:
    """Make a VM's directory from an image, or from a template of the image: a thin overlay on that disk.

    The directory is renamed when it is complete. Raises `VmExistsError`, also if an interrupted clone left files, and
    `HypervisorError`.
    """
    _check_fit(image, tools)
    staging = where.partial(name)
    try:
        if template is not None:
            await run_in_thread(partial(_clone_template, where, name, image, template))
            return
        await run_in_thread(partial(_claim, where, name))
        await runner.run(overlay_command(tools, staging / layout.DISK, "raw", str(image.disk)))
        await run_in_thread(partial(_write_variables, staging, image, tools))
        await run_in_thread(partial(_publish, where, name, image))
    except (OSError, CommandError) as error:
        raise HypervisorError(f"{name} cannot be cloned: {error}", remedy="check the data volume") from error


def overlay_command(tools: Toolchain, disk: Path, kind: str, backing: str, *, size_bytes: int | None = None) -> Command:
    """Return the command that makes a thin disk on a backing file, whose path is relative to the new disk's folder.

    `size_bytes` is the size of the backing file; without it, the backing file must exist.
    """
    size = () if size_bytes is None else ("-u", str(size_bytes))
    argv = (str(tools.disk_tool), "create", "-q", "-f", "qcow2", "-F", kind, "-b", backing, *size[:1], str(disk))
    return Command((*argv, *size[1:]), timeout_s=CREATE_S)


def remove_vm(where: QemuLayout, name: str) -> None:
    """Remove all files of a VM, complete or not. Blocks: call it in a thread. Raises `HypervisorError`."""
    for directory in (where.vm(name), where.partial(name)):
        try:
            shutil.rmtree(directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise HypervisorError(f"{directory} cannot be removed: {error}") from error


def _check_fit(image: LocalImage, tools: Toolchain) -> None:
    if image.os != "linux":
        raise UnfitImageError(f"image {image.digest} is for {image.os}, but the qemu driver runs linux guests")
    if image.arch != tools.machine.arch:
        raise UnfitImageError(
            f"image {image.digest} is for {image.arch}, but {tools.emulator} runs {tools.machine.arch}"
        )


def _claim(where: QemuLayout, name: str) -> None:
    where.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    if where.vm(name).exists():
        raise VmExistsError(f"a VM named {name} exists")
    try:
        where.partial(name).mkdir(mode=0o700)
    except FileExistsError:
        raise VmExistsError(f"an incomplete VM named {name} exists", remedy="delete it first") from None


def _clone_template(where: QemuLayout, name: str, image: LocalImage, template: TemplateFiles) -> None:
    _claim(where, name)
    template.link_into(where.partial(name))
    _publish(where, name, image)


def _write_variables(staging: Path, image: LocalImage, tools: Toolchain) -> None:
    if firmware := choose_firmware(tools.firmware, tools.machine, image.nvram):
        write_variables(firmware, image.nvram, staging / layout.NVRAM)


def _publish(where: QemuLayout, name: str, image: LocalImage) -> None:
    where.partial(name).joinpath(layout.IMAGE).write_text(f"{image.digest}\n", encoding="ascii")
    os.rename(where.partial(name), where.vm(name))
