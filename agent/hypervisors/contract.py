"""The contract of a hypervisor driver, and its errors. One conformance suite (tests/hypervisors) tests every driver.

Drivers hold no policy: they do not retry, and they make no decisions. Every method has a time limit and may be called
again after a crash at any point: `stop` and `delete` of a VM that does not exist succeed. Methods raise
`HypervisorError` or a subclass, or the `CommandError` of a tool they run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from agent.domain.errors import ErrorOrigin, HearthError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from agent.domain.model import LocalImage, Observed, VmSize


class HypervisorError(HearthError):
    """A driver's operation failed. The message names the VM and contains the tool's own message."""

    code = "hypervisor-error"


class HypervisorUnavailableError(HypervisorError):
    """The hypervisor does not work on this host: a program, an accelerator or a license is missing."""

    code = "hypervisor-unavailable"


class VmExistsError(HypervisorError):
    """The name of a clone is taken. Drivers never overwrite a VM, unlike `tart clone`."""

    code = "vm-exists"


class VmNotFoundError(HypervisorError):
    """There is no VM of that name."""

    code = "vm-not-found"


class ForeignVmError(HypervisorError):
    """The VM was not made by this agent, which therefore never makes, stops or deletes it."""

    code = "foreign-vm"


class VmNotRunningError(HypervisorError):
    """The VM exists but does not run."""

    code = "vm-not-running"


class SlotsTakenError(HypervisorError):
    """The host already runs as many VMs as it may, foreign ones included. Neither VM nor image is the cause."""

    code = "slots-taken"


class TemplatesUnsupportedError(HypervisorError):
    """This guest cannot become a template: it has no program that reinitialises its identity."""

    code = "templates-unsupported"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.GUEST


class GuestError(HypervisorError):
    """The guest did not answer, or answered wrong. The tool is not the cause."""

    code = "guest-error"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.GUEST


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The features of a driver on this host, so that its callers do not depend on its name."""

    execute: bool
    suspend: bool
    templates: bool  # several clones can resume from one template
    counts_foreign_slots: bool  # foreign VMs hold slots too (Apple's limit of 2 counts the VMs of every user)


@dataclass(frozen=True, slots=True)
class VmSpec:
    """The VM to create: its name, its size, and the guest ports that must be reachable from the host."""

    name: str
    size: VmSize
    ports: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a VM: guest port `p` is reachable at `host:ports[p]`."""

    host: str
    ports: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class ExecResult:
    """The result of a command in a guest. Output is bounded; `truncated` shows that some was dropped."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class VmExit:
    """The end of a VM's process. `code` is None if it is unknown, as for an adopted process."""

    name: str
    code: int | None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class HealthFact:
    """A state of the hypervisor that becomes a condition of the host.

    `reason` is one CamelCase word, empty while the state is healthy. `message` has the problem and its remedy.
    """

    condition: str
    reason: str = ""
    message: str = ""


class Hypervisor(Protocol):
    """One hypervisor on one host."""

    @property
    def name(self) -> str:
        """`qemu`, `tart`, `anka` or `simulated`."""

    @property
    def version(self) -> str:
        """The hypervisor's own version; empty before `preflight`."""

    @property
    def capabilities(self) -> Capabilities:
        """The features of this driver on this host."""

    async def preflight(self) -> None:
        """Check that VMs can run here. Raises `HypervisorUnavailableError` with what to install or change."""

    async def health(self) -> tuple[HealthFact, ...]:
        """Return the conditions that listings do not show, such as the state of a license; empty if there are none.

        Called at every observation, so a driver caches the result of an expensive query.
        """

    def on_exit(self, listener: Callable[[VmExit], None]) -> None:
        """Call `listener` on the event loop as soon as a VM's process ends, for any reason.

        Includes VMs that an earlier agent started.
        """

    async def inventory(self) -> tuple[Observed, ...]:
        """Return all VMs of the host, including foreign and incomplete ones. Raises instead of returning a part.

        The first call after a start also adopts the VMs that run: their exits are reported from then on.
        """

    async def clone(self, spec: VmSpec, image: LocalImage, *, template: str | None = None) -> None:
        """Make a stopped VM from an image, or a suspended VM from a template of that image.

        Raises `VmExistsError` if the name is taken, `HypervisorError` if there is no such template.
        """

    async def start(self, spec: VmSpec) -> None:
        """Start a cloned VM and return once its process runs; the guest may still be booting.

        Raises `SlotsTakenError` if the host already runs as many VMs as it may.

        A VM cloned from a template resumes from the template's snapshot. `start` then returns after the guest has
        reinitialised its identity: random numbers, clock, network address, host name and SSH host keys.
        """

    async def stop(self, name: str, *, grace_s: float) -> None:
        """Request a shutdown of the guest, wait at most `grace_s`, then kill the VM. Returns once it does not run.

        A grace of 0 kills it immediately. Succeeds if the VM does not run or does not exist.
        """

    async def delete(self, name: str) -> None:
        """Remove every file of a stopped VM. Succeeds if the VM does not exist."""

    async def suspend(self, name: str) -> None:
        """Save the VM's snapshot and end its process. Raises `HypervisorError` if `capabilities.suspend` is false."""

    async def resume(self, spec: VmSpec) -> None:
        """Start a suspended VM from its snapshot."""

    async def save_template(self, name: str, template: str) -> None:
        """Save snapshot and disk of a running VM as a template. The VM pauses during the save, then runs on.

        Raises `TemplatesUnsupportedError`, before it changes anything, if the guest cannot reinitialise its identity.
        Replaces a template of that name for later clones.
        """

    async def templates(self) -> frozenset[str]:
        """Return the names of the complete templates. Empty if `capabilities.templates` is false."""

    async def drop_template(self, template: str) -> None:
        """Remove a template. VMs cloned from it are not affected. Succeeds if there is no such template."""

    async def address(self, name: str) -> Address:
        """Return the VM's address. Raises `VmNotRunningError` if it does not run."""

    async def ping(self, name: str, *, timeout_s: float) -> None:
        """Return when the guest agent answers. Raises `GuestError` if it does not in time."""

    async def execute(self, name: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
        """Run a command in the guest by its agent. Raises `GuestError` if the guest does not answer in time."""

    async def evidence(self, name: str, into: Path) -> None:
        """Write evidence of the VM's state (console tail, tool output, screenshot) into the directory `into`.

        Best effort, bounded in time and size. Works for an ended VM while its files exist.
        """

    async def close(self) -> None:
        """Stop watching and free this process's resources. Every VM runs on."""


class WithoutTemplates:
    """The template methods of a driver whose hypervisor cannot start several VMs from one snapshot."""

    async def save_template(self, name: str, template: str) -> None:
        """See `Hypervisor`. Always raises."""
        raise TemplatesUnsupportedError(
            f"no template {template} can be made of {name}: the hypervisor cannot start several VMs from one snapshot"
        )

    async def templates(self) -> frozenset[str]:
        """See `Hypervisor`. Always empty."""
        return frozenset()

    async def drop_template(self, template: str) -> None:
        """See `Hypervisor`. Does nothing."""
