"""What every hypervisor driver must do. One conformance suite (tests/hypervisors) runs over all of them.

Drivers hold no policy: they neither retry nor decide. Every method bounds its own time, is safe to call again after a
crash at any point (`stop` and `delete` of what is not there succeed), and raises `HypervisorError` or a subclass, or
the `CommandError` of a tool it runs.
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
    """A driver could not do what was asked; the message names the VM and holds the tool's own words."""

    code = "hypervisor-error"


class HypervisorUnavailableError(HypervisorError):
    """The hypervisor cannot work on this host at all: missing program, no accelerator, no license."""

    code = "hypervisor-unavailable"


class VmExistsError(HypervisorError):
    """A clone was asked for under a name that is taken. Never overwritten, unlike `tart clone`."""

    code = "vm-exists"


class VmNotFoundError(HypervisorError):
    """No VM of that name is known."""

    code = "vm-not-found"


class ForeignVmError(HypervisorError):
    """The name is not one of ours, so its VM is never made, stopped or deleted by us."""

    code = "foreign-vm"


class VmNotRunningError(HypervisorError):
    """The VM exists but does not run, so it cannot be asked."""

    code = "vm-not-running"


class SlotsTakenError(HypervisorError):
    """The host runs as many VMs as it may, somebody else's included: no fault of the VM or its image."""

    code = "slots-taken"


class FanOutUnsupportedError(HypervisorError):
    """This guest cannot be started several times from one memory: it has no means to become itself afterwards."""

    code = "templates-unsupported"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.GUEST


class GuestError(HypervisorError):
    """The guest did not answer, or answered wrong: no verdict on the tool."""

    code = "guest-error"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.GUEST


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a driver can do, so that nothing above it asks which driver it is."""

    execute: bool
    suspend: bool
    templates: bool  # several clones can resume from one suspended VM
    counts_foreign_slots: bool  # VMs that are not ours hold slots too (Apple's limit of 2 counts every user)


@dataclass(frozen=True, slots=True)
class VmSpec:
    """What to create: a VM of this name and size, with these guest ports reachable from the host."""

    name: str
    size: VmSize
    ports: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a VM is reached: guest port `p` at `host:ports[p]`."""

    host: str
    ports: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a command in a guest did. Output is bounded; `truncated` says that some was cut."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class VmExit:
    """A VM's process ended. `code` is None when it is not ours to know (an adopted process)."""

    name: str
    code: int | None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class HealthFact:
    """Something about a hypervisor that people must know, as a condition of the host.

    `reason` is one CamelCase word, empty when all is well; `message` says what is wrong and the way out.
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
        """The hypervisor's own version; known after `preflight`, empty before."""

    @property
    def capabilities(self) -> Capabilities:
        """What this driver can do on this host."""

    async def preflight(self) -> None:
        """Prove that VMs can run here. Raises `HypervisorUnavailableError` naming what to install or change."""

    async def health(self) -> tuple[HealthFact, ...]:
        """What people must know of this hypervisor beyond what listings tell, such as the state of a license.

        Asked at every look around: what is dear to find out is to be remembered. Empty where there is nothing to tell.
        """

    def on_exit(self, listener: Callable[[VmExit], None]) -> None:
        """Call `listener` on the event loop as soon as a VM's process ends, whoever started it and whyever it ended.

        Also for VMs adopted from an earlier life of the agent.
        """

    async def inventory(self) -> tuple[Observed, ...]:
        """Every VM there is, ours and foreign, half-made ones included: complete, or an error. Never partial.

        The first call after a start also adopts: processes found running are watched for their exit from then on.
        """

    async def clone(self, spec: VmSpec, image: LocalImage, *, template: str | None = None) -> None:
        """Make a stopped VM from an image, or a suspended one from a template of that image.

        Raises `VmExistsError` when the name is taken, `HypervisorError` when there is no such template.
        """

    async def start(self, spec: VmSpec) -> None:
        """Start a cloned VM and return when its process runs; the guest may still be booting.

        Raises `SlotsTakenError` where the host refuses because as many VMs run as may, ours or not.

        One cloned from a template goes on from that memory, and this returns when it has become itself: random numbers
        of its own, the time of now, its own network address, host name and SSH host keys.
        """

    async def stop(self, name: str, *, grace_s: float) -> None:
        """Ask the guest to shut down, wait at most `grace_s`, then end it. Returns when it provably does not run.

        A grace of 0 ends it at once. Stopping what does not run or does not exist succeeds.
        """

    async def delete(self, name: str) -> None:
        """Remove every file of a VM. It must not run. Deleting what does not exist succeeds."""

    async def suspend(self, name: str) -> None:
        """Save the VM's memory and end its process. Raises `HypervisorError` where `capabilities.suspend` is false."""

    async def resume(self, spec: VmSpec) -> None:
        """Start a suspended VM from its saved memory."""

    async def save_template(self, name: str, template: str) -> None:
        """Keep memory and disk of a running VM under a name, to clone others from; it pauses and then runs on.

        Raises `FanOutUnsupportedError`, at once and with the VM untouched, when its guest is not made for it.
        Saving under a name that exists replaces it for the clones to come.
        """

    async def templates(self) -> frozenset[str]:
        """The names of the templates that are whole. Empty where `capabilities.templates` is false."""

    async def drop_template(self, template: str) -> None:
        """Remove a template. VMs cloned from it are not harmed. Removing what does not exist succeeds."""

    async def address(self, name: str) -> Address:
        """Where the VM is reached. Raises `VmNotRunningError` when it does not run."""

    async def ping(self, name: str, *, timeout_s: float) -> None:
        """Return when the guest agent answers. Raises `GuestError` when it does not in time."""

    async def execute(self, name: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
        """Run a command in the guest by its agent. Raises `GuestError` when the guest does not answer in time."""

    async def evidence(self, name: str, into: Path) -> None:
        """Copy what explains the VM's state (console tail, tool output, screenshot) into the directory `into`.

        Best effort by nature, bounded in time and size; works for a dead VM as long as its files stand.
        """

    async def close(self) -> None:
        """Stop watching and free what this process holds. Leaves every VM running."""
