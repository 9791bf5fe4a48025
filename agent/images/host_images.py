"""The images of a host: Anka stores its own templates, all other hypervisors use the agent's image store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.images.service import open_images

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from agent.config import Config
    from agent.images.contract import Images
    from agent.processes.command import CommandRunner


def open_host_images(config: Config, hypervisor: str, runner: CommandRunner) -> AbstractAsyncContextManager[Images]:
    """Open the images for the hypervisor of this name; `runner` runs the commands they need."""
    if hypervisor == "anka":
        from agent.images.anka.service import open_anka_images  # noqa: PLC0415

        return open_anka_images(config, runner)
    return open_images(config, runner=runner)
