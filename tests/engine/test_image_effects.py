"""Events of a pull in progress, and failed queries of registries."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from agent.domain.actions import PullImage, ResolveImage
from agent.domain.breaker import Scope
from agent.domain.events import EventKind
from agent.engine import image_effects
from agent.engine.effect_context import EffectContext
from agent.engine.evidence import Evidence
from agent.hypervisors.simulated import SimulatedHost, SimulatedHypervisor
from agent.images.contract import PullProgress
from agent.images.errors import ImageNotFoundError, RegistryDeniedError, RegistryError
from tests.engine.support import Clock, open_store, until

if TYPE_CHECKING:
    from pathlib import Path

    from agent.domain.events import Event

DIGEST = "sha256:" + "a" * 64


class SlowImages:
    """An image that is half pulled until `go` is set."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def pull(self, _reference: str, _digest: str) -> None:
        await self.go.wait()

    def progress(self) -> tuple[PullProgress, ...]:
        other = PullProgress("reg/other:1", "sha256:other", 10, 0, 0, 0.0, None)
        return (
            other,
            PullProgress("reg/ci:1", DIGEST, 80_000_000, 40_000_000, 40_000_000, 5e6, 8.0, "reg/ci", "sha256:b: 429"),
        )


async def test_pull_records_its_progress_and_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_effects, "PROGRESS_PERIOD_S", 0.001)
    events: list[Event] = []
    images = SlowImages()

    async def nothing(_vm: str) -> tuple[()]:
        return ()

    async with open_store(tmp_path / "journal.sqlite", Clock()) as store:
        store.on_change(events.extend)
        evidence = Evidence(tmp_path / "evidence", 1 << 20, 1 << 20, events=nothing, probes=lambda _: ())
        context = EffectContext(SimulatedHypervisor(SimulatedHost()), images, store, evidence)  # type: ignore[arg-type]
        pulling = asyncio.create_task(image_effects.pull(context, PullImage("reg/ci:1", DIGEST)))
        await until(lambda: len(events) >= 2)
        images.go.set()
        await pulling
    assert {event.kind for event in events[:-1]} == {EventKind.IMAGE_PULLING}
    assert events[0].image == DIGEST
    assert events[0].detail == "reg/ci:1: 40 of 80 MB, 5.0 MB/s, 8 s left, from reg/ci; waiting for sha256:b: 429"
    assert events[-1].kind is EventKind.IMAGE_PULLED


class FailingImages:
    """Images whose references cannot be resolved."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def resolve(self, _reference: str) -> str:
        raise self._error


@pytest.mark.parametrize(
    ("error", "shared"),
    [
        (RegistryError("reg does not answer"), True),
        (ConnectionResetError("reset"), True),
        (RegistryDeniedError("reg refused the credentials"), False),
        (ImageNotFoundError("reg has no ci"), False),
    ],
)
async def test_only_an_outage_delays_all_references_of_a_registry(
    error: Exception, shared: bool, tmp_path: Path
) -> None:
    async with open_store(tmp_path / "journal.sqlite", Clock()) as store:
        context = EffectContext(SimulatedHypervisor(SimulatedHost()), FailingImages(error), store, None)  # type: ignore[arg-type]
        for reference in ("reg/a:1", "reg/b:1"):
            await image_effects.resolve(context, ResolveImage(reference))
    async with open_store(tmp_path / "journal.sqlite", Clock()) as store:
        scopes = {key.scope for key in store.state.breakers}
        assert scopes == {Scope.REFERENCE} | ({Scope.REGISTRY} if shared else set())
