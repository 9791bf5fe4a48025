"""What actions do to the world outside: hypervisor and images, each step bounded in time, each end in the journal.

An effect never raises for what it is prepared for: it writes down what happened, and the next plan decides.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from agent.domain.actions import CreateVm, DestroyVm, EvictImage, PullImage, ReapStray, ResolveImage
from agent.domain.breaker import Breaker
from agent.domain.errors import Blame, HearthError
from agent.domain.events import EventKind
from agent.domain.model import Cause, Failure, Resolution, Vm
from agent.domain.states import VmEvent, VmState
from agent.engine.intents import fail_vm
from agent.hypervisors.contract import VmSpec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from agent.domain.actions import Action
    from agent.engine.ledger import Ledger
    from agent.hypervisors.contract import Hypervisor
    from agent.images.contract import Images

T = TypeVar("T")

CLONE_TIMEOUT_S: Final = 120.0
START_TIMEOUT_S: Final = 120.0
EVIDENCE_TIMEOUT_S: Final = 20.0
TEARDOWN_MARGIN_S: Final = 60.0
RESOLVE_TIMEOUT_S: Final = 60.0
PULL_TIMEOUT_S: Final = 12 * 3600.0
EVICT_TIMEOUT_S: Final = 300.0


class TooSlowError(HearthError):
    """The outside world did not answer in time."""

    code = "too-slow"
    blame = Blame.HOST


class NotGoneError(HearthError):
    """A VM is still listed after its teardown: a leak until it is gone."""

    code = "not-gone"


@dataclass(frozen=True, slots=True)
class Effects:
    """The world outside, and where its answers are written."""

    hypervisor: Hypervisor
    images: Images
    ledger: Ledger
    evidence_dir: Path
    look_at_images: Callable[[], Awaitable[None]]
    jitter: Callable[[], float]

    async def perform(self, action: Action) -> None:
        """Do what an action asks. Actions that were wholly intent have nothing left to do."""
        match action:
            case CreateVm():
                await self._create(action)
            case DestroyVm(name, _, evidence):
                await self._destroy(name, evidence=evidence)
            case ReapStray(name):
                await self._reap(name)
            case ResolveImage(reference):
                await self._resolve(reference)
            case PullImage():
                await self._pull(action)
                await self.look_at_images()
            case EvictImage(digest):
                await self._evict(digest)
                await self.look_at_images()

    async def _create(self, action: CreateVm) -> None:
        spec = VmSpec(action.vm, action.pool.size, action.pool.ports)
        started_s = time.monotonic()
        try:
            image = await _bounded(self.images.local(action.image), CLONE_TIMEOUT_S, "finding the image")
            await _bounded(self.hypervisor.clone(spec, image), CLONE_TIMEOUT_S, "the clone")
        except (HearthError, OSError) as error:
            await self._fail(action.vm, Cause.CLONE_FAILED, error)
            return
        async with self.ledger.transaction() as transaction:
            vm = transaction.get(Vm, action.vm)
            if vm is None or vm.state is not VmState.CREATING:
                return
            transaction.move(vm, VmEvent.CLONED)
            transaction.event(
                EventKind.VM_STARTING, vm=vm.name, pool=vm.pool, image=vm.image,
                duration_s=time.monotonic() - started_s,
            )  # fmt: skip
        try:
            await _bounded(self.hypervisor.start(spec), START_TIMEOUT_S, "the start")
        except (HearthError, OSError) as error:
            await self._fail(action.vm, Cause.START_FAILED, error)

    async def _fail(self, name: str, cause: Cause, error: Exception) -> None:
        async with self.ledger.transaction() as transaction:
            vm = transaction.get(Vm, name)
            if vm is not None and vm.alive:
                fail_vm(transaction, vm, Failure(cause, str(error), transaction.now_s), jitter=self.jitter())

    async def _destroy(self, name: str, *, evidence: bool) -> None:
        vm = self.ledger.vms.get(name)
        if vm is None:
            return
        began_s = time.monotonic()
        try:
            if evidence:
                await self._keep_evidence(name)
            await self._end(name, grace_s=0.0 if vm.failure else vm.stop_grace_s)
        except (HearthError, OSError) as error:
            async with self.ledger.transaction() as transaction:
                transaction.event(EventKind.VM_TEARDOWN_FAILED, vm=name, pool=vm.pool, detail=str(error))
                transaction.trip(name, reason=str(error), jitter=self.jitter())
            return
        async with self.ledger.transaction() as transaction:
            transaction.drop(Vm, name)
            transaction.drop(Breaker, name)
            transaction.event(
                EventKind.VM_GONE, vm=name, pool=vm.pool, image=vm.image, duration_s=time.monotonic() - began_s
            )

    async def _reap(self, name: str) -> None:
        try:
            await self._end(name, grace_s=0.0)
        except (HearthError, OSError) as error:
            async with self.ledger.transaction() as transaction:
                transaction.event(EventKind.STRAY_REAP_FAILED, vm=name, detail=str(error))
                transaction.trip(name, reason=str(error), jitter=self.jitter())
            return
        async with self.ledger.transaction() as transaction:
            transaction.drop(Breaker, name)
            transaction.event(EventKind.STRAY_REAPED, vm=name, detail="it was not in the journal")

    async def _end(self, name: str, *, grace_s: float) -> None:
        """End a VM and prove it: stopped by the hypervisor's word, its files deleted, and listed no more."""
        await _bounded(self.hypervisor.stop(name, grace_s=grace_s), grace_s + TEARDOWN_MARGIN_S, "the stop")
        await _bounded(self.hypervisor.delete(name), TEARDOWN_MARGIN_S, "the deletion")
        listed = await _bounded(self.hypervisor.inventory(), TEARDOWN_MARGIN_S, "the inventory")
        if any(seen.name == name for seen in listed):
            raise NotGoneError(f"{name} is still listed after its deletion", remedy="it is retried; see its processes")

    async def _keep_evidence(self, name: str) -> None:
        """Keep what explains a failure. A VM that cannot be explained is torn down all the same."""
        try:
            collecting = self.hypervisor.evidence(name, self.evidence_dir / name)
            await _bounded(collecting, EVIDENCE_TIMEOUT_S, "collecting evidence")
        except (HearthError, OSError) as error:
            async with self.ledger.transaction() as transaction:
                transaction.event(EventKind.VM_EVIDENCE_FAILED, vm=name, detail=str(error))

    async def _resolve(self, reference: str) -> None:
        before = self.ledger.resolutions.get(reference)
        known = before.digest if before else None
        try:
            digest = await _bounded(self.images.resolve(reference), RESOLVE_TIMEOUT_S, "asking the registry")
        except (HearthError, OSError) as error:
            async with self.ledger.transaction() as transaction:
                transaction.put(Resolution(reference, known, transaction.now_s, str(error)))
                transaction.trip(reference, reason=str(error), jitter=self.jitter())
                transaction.event(EventKind.IMAGE_RESOLVE_FAILED, image=reference, detail=str(error))
            return
        async with self.ledger.transaction() as transaction:
            transaction.put(Resolution(reference, digest, transaction.now_s))
            transaction.drop(Breaker, reference)
            if digest != known:
                transaction.event(EventKind.IMAGE_RESOLVED, image=digest, detail=reference)

    async def _pull(self, action: PullImage) -> None:
        began_s = time.monotonic()
        try:
            await _bounded(self.images.pull(action.reference, action.digest), PULL_TIMEOUT_S, "the pull")
        except (HearthError, OSError) as error:
            async with self.ledger.transaction() as transaction:
                transaction.trip(action.digest, reason=f"{action.reference}: {error}", jitter=self.jitter())
                transaction.event(EventKind.IMAGE_PULL_FAILED, image=action.digest, detail=str(error))
            return
        async with self.ledger.transaction() as transaction:
            transaction.drop(Breaker, action.digest)
            transaction.event(
                EventKind.IMAGE_PULLED, image=action.digest, detail=action.reference,
                duration_s=time.monotonic() - began_s,
            )  # fmt: skip

    async def _evict(self, digest: str) -> None:
        try:
            await _bounded(self.images.remove(digest), EVICT_TIMEOUT_S, "removing the image")
        except (HearthError, OSError) as error:
            async with self.ledger.transaction() as transaction:
                transaction.trip(digest, reason=str(error), jitter=self.jitter())
                transaction.event(EventKind.IMAGE_EVICT_FAILED, image=digest, detail=str(error))
            return
        async with self.ledger.transaction() as transaction:
            transaction.drop(Breaker, digest)
            transaction.event(EventKind.IMAGE_EVICTED, image=digest)


async def _bounded(awaitable: Awaitable[T], limit_s: float, what: str) -> T:
    """Await at most `limit_s`, with an error that says what was waited for."""
    try:
        return await asyncio.wait_for(awaitable, limit_s)
    except TimeoutError:
        raise TooSlowError(f"{what} took longer than {limit_s:g} s", remedy="it was ended and is retried") from None
