"""`[hypervisor]`: which hypervisor runs the VMs, and how."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from agent.config.base import Seconds, Section


class QemuConfig(Section):
    """`[hypervisor.qemu]`."""

    accelerator: Literal["auto", "hvf", "kvm", "tcg"] = "auto"
    """`auto` proves each by a trial boot and remembers the first that works."""
    binary: str | None = None
    """Path of qemu-system-*; default: the one for this machine's architecture on PATH."""


class AnkaConfig(Section):
    """`[hypervisor.anka]`: Anka, and the Registry its templates come from."""

    binary: str | None = None
    """Path of `anka`; default: the one on PATH, else /usr/local/bin/anka."""
    timeout_s: Seconds = 20.0
    """How long a command of `anka` may take that has no time of its own."""
    start_timeout_s: Seconds = 90.0
    """How long `anka clone` and `anka start` may take."""
    pull_silence_s: Seconds = 900.0
    """How long `anka pull` may say no more, once it told how far it is, before it is killed."""
    logs: Path | None = None
    """Where Anka logs; default: /Library/Logs/Anka for root, else below the user's own Library."""
    registry: str | None = Field(default=None, pattern="^https?://[^/]+/?$")
    """The Anka Registry, such as `https://registry.example:8089`."""
    remote: str = Field(default="hearth", pattern="^[A-Za-z0-9._-]+$")
    """What `anka registry` calls it. It is added under that name when there is none."""
    ca_file: Path | None = None
    """Certificates (PEM) to trust for it, beside the system's."""
    cert_file: Path | None = None
    """Our certificate, where the Registry asks for one, with `key_file`."""
    key_file: Path | None = None
    root_token: SecretStr | None = None
    """For the Registry's REST API; `anka` itself needs certificate or API key."""
    api_key_id: str | None = None
    """A user API key, with `api_key_file` (PEM)."""
    api_key_file: Path | None = None

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        for one, other in (("cert_file", "key_file"), ("api_key_id", "api_key_file")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ValueError(f"{one} and {other} belong together: set both or neither")
        return self


class TartConfig(Section):
    """`[hypervisor.tart]`."""

    program: str = "tart"
    """Name on PATH, or path, of `tart`."""
    home: Path | None = None
    """Where Tart keeps VMs and images; default: `TART_HOME` of the environment, else `~/.tart`."""
    suspendable: bool = True
    """Start macOS guests with `--suspendable`: pools can keep standby VMs then, and guests have no audio device."""
    run_arguments: tuple[str, ...] = ()
    """Passed to `tart run` as they are, such as `--net-softnet`."""
    command_timeout_s: Seconds = 60.0
    """The most that one command of Tart's, or the start of a VM, may take before it is killed and counts as failed."""

    @property
    def home_path(self) -> Path:
        """The Tart home in effect. Tart compares it as text, so it is never resolved."""
        return self.home or Path(os.environ.get("TART_HOME") or Path.home() / ".tart")


class HypervisorConfig(Section):
    """`[hypervisor]`."""

    kind: Literal["auto", "qemu", "tart", "anka", "simulated"] = "auto"
    qemu: QemuConfig = QemuConfig()
    tart: TartConfig = TartConfig()
    anka: AnkaConfig = AnkaConfig()

    @property
    def driver(self) -> Literal["qemu", "tart", "anka", "simulated"]:
        """The driver in effect. `auto` is what a Mac has, Tart before Anka, else QEMU, which runs everywhere."""
        if self.kind != "auto":
            return self.kind
        if sys.platform == "darwin":
            if shutil.which(self.tart.program):
                return "tart"
            if shutil.which(self.anka.binary or "anka"):
                return "anka"
        return "qemu"
