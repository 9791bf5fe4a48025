"""`[hypervisor]`: the hypervisor that runs the VMs, and its settings."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from agent.config.base import Seconds, Section


class QemuConfig(Section):
    """`[hypervisor.qemu]`: settings of QEMU."""

    accelerator: Literal["auto", "hvf", "kvm", "tcg"] = "auto"
    """`auto` tests each accelerator with a trial boot, and remembers the first that works."""
    binary: str | None = None
    """Path of qemu-system-*. Default: the program on PATH for the architecture of this machine."""


class AnkaConfig(Section):
    """`[hypervisor.anka]`: settings of Anka, and the Anka Registry of its templates."""

    binary: str | None = None
    """Path of `anka`. Default: the program on PATH, otherwise /usr/local/bin/anka."""
    timeout_s: Seconds = 20.0
    """Timeout of `anka` commands without another timeout."""
    start_timeout_s: Seconds = 90.0
    """Timeout of `anka clone` and `anka start`."""
    pull_silence_s: Seconds = 900.0
    """Time without output after which `anka pull` is killed. It counts from its first progress report."""
    logs: Path | None = None
    """Folder of the logs of Anka. Default: /Library/Logs/Anka for root, otherwise in the Library of the user."""
    registry: str | None = Field(default=None, pattern="^https?://[^/]+/?$")
    """URL of the Anka Registry, for example `https://registry.example:8089`."""
    remote: str = Field(default="hearth", pattern="^[A-Za-z0-9._-]+$")
    """Name of the Registry in `anka registry`. The agent adds it with this name if it is missing."""
    ca_file: Path | None = None
    """Certificates (PEM) to trust for the Registry, in addition to those of the system."""
    cert_file: Path | None = None
    """Client certificate (PEM) for the Registry, if it requires one. Needs `key_file`."""
    key_file: Path | None = None
    root_token: SecretStr | None = None
    """Token for the REST API of the Registry. The program `anka` needs a certificate or an API key."""
    api_key_id: str | None = None
    """Id of a user API key. Needs `api_key_file` (PEM)."""
    api_key_file: Path | None = None

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        for one, other in (("cert_file", "key_file"), ("api_key_id", "api_key_file")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ValueError(f"{one} and {other} belong together: set both or neither")
        return self


class TartConfig(Section):
    """`[hypervisor.tart]`: settings of Tart."""

    program: str = "tart"
    """Path of `tart`, or its name on PATH."""
    home: Path | None = None
    """Folder of the VMs and images of Tart. Default: `TART_HOME` of the environment, otherwise `~/.tart`."""
    suspendable: bool = True
    """Start macOS guests with `--suspendable`. Then pools can have standby VMs, but guests have no audio device."""
    run_arguments: tuple[str, ...] = ()
    """Additional arguments of `tart run`, for example `--net-softnet`."""
    command_timeout_s: Seconds = 60.0
    """Timeout of each `tart` command and of the start of a VM. After it the command is killed and has failed."""

    @property
    def home_path(self) -> Path:
        """The effective home of Tart. It is not resolved, because Tart compares it as text."""
        return self.home or Path(os.environ.get("TART_HOME") or Path.home() / ".tart")


class HypervisorConfig(Section):
    """`[hypervisor]`: the hypervisor and the settings of each one."""

    kind: Literal["auto", "qemu", "tart", "anka", "simulated"] = "auto"
    qemu: QemuConfig = QemuConfig()
    tart: TartConfig = TartConfig()
    anka: AnkaConfig = AnkaConfig()

    @property
    def driver(self) -> Literal["qemu", "tart", "anka", "simulated"]:
        """The effective driver. On a Mac, `auto` selects Tart, or Anka if Tart is not installed; otherwise QEMU."""
        if self.kind != "auto":
            return self.kind
        if sys.platform == "darwin":
            if shutil.which(self.tart.program):
                return "tart"
            if shutil.which(self.anka.binary or "anka"):
                return "anka"
        return "qemu"
