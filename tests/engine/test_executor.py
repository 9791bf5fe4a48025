"""Effects that raise unforeseen errors: their resource backs off, and the error is recorded and logged once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from agent.domain.actions import EvictImage, PullImage, ResolveImage
from agent.domain.events import EventKind
from agent.engine.effect_context import EffectContext, UnexpectedError, bounded
from agent.engine.effects import perform
from agent.engine.evidence import Evidence
from agent.engine.executor import FIRST_HOLD_S, LONGEST_HOLD_S, Executor
from agent.hypervisors.simulated import SimulatedHost, SimulatedHypervisor
from tests.engine.support import Clock, open_store

if TYPE_CHECKING:
    from pathlib import Path

    from agent.domain.actions import Effect
    from agent.domain.events import Event

DIGEST = "sha256:" + "a" * 64
EFFECT = ResolveImage("reg/ci:1")


class Rest:
    """A `sleep` that records the delays and ends when the test releases it."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self.began = asyncio.Event()
        self.release = asyncio.Event()

    async def __call__(self, delay_s: float) -> None:
        self.delays.append(delay_s)
        self.began.set()
        await self.release.wait()


async def broken(_effect: Effect) -> None:
    raise RecursionError


async def test_resource_stays_busy_after_its_effect_raised() -> None:
    ended, rest = asyncio.Event(), Rest()
    executor = Executor(broken, ended.set, sleep=rest)
    with capture_logs():
        executor.start(EFFECT)
        await rest.began.wait()
    assert EFFECT.resource in executor.busy
    assert not ended.is_set()
    rest.release.set()
    await ended.wait()
    assert executor.busy == frozenset()


async def test_repeated_error_is_logged_once_with_growing_delays() -> None:
    ended, rest = asyncio.Event(), Rest()
    rest.release.set()
    executor = Executor(broken, ended.set, sleep=rest)
    with capture_logs() as logs:
        for _ in range(10):
            ended.clear()
            executor.start(EFFECT)
            await ended.wait()
    assert rest.delays[:3] == [FIRST_HOLD_S, 2 * FIRST_HOLD_S, 4 * FIRST_HOLD_S]
    assert rest.delays[-1] == LONGEST_HOLD_S
    assert [line["event"] for line in logs] == ["action-failed"]


async def test_delay_starts_again_after_a_success() -> None:
    ended, rest = asyncio.Event(), Rest()
    rest.release.set()
    results = iter([True, False, True])

    async def in_turn(_effect: Effect) -> None:
        if next(results):
            raise ZeroDivisionError

    executor = Executor(in_turn, ended.set, sleep=rest)
    with capture_logs():
        for _ in range(3):
            ended.clear()
            executor.start(EFFECT)
            await ended.wait()
    assert rest.delays == [FIRST_HOLD_S, FIRST_HOLD_S]


class BrokenImages:
    """Images whose every call raises an error that it does not document."""

    async def resolve(self, _reference: str) -> str:
        raise OverflowError("date value out of range")

    async def pull(self, _reference: str, _digest: str) -> None:
        raise RecursionError

    async def remove(self, _digest: str) -> None:
        raise UnicodeError("label too long")

    def progress(self) -> tuple[()]:
        return ()


@pytest.mark.parametrize(
    ("effect", "kind", "says"),
    [
        (ResolveImage("reg/ci:1"), EventKind.IMAGE_RESOLVE_FAILED, "OverflowError: date value"),
        (PullImage("reg/ci:1", DIGEST), EventKind.IMAGE_PULL_FAILED, "RecursionError"),
        (EvictImage(DIGEST), EventKind.IMAGE_EVICT_FAILED, "UnicodeError"),
    ],
)
async def test_unforeseen_error_is_recorded_and_backs_off(
    effect: Effect, kind: EventKind, says: str, tmp_path: Path
) -> None:
    events: list[Event] = []

    async def nothing(_vm: str) -> tuple[()]:
        return ()

    async def observe() -> None:
        """There is no storage to observe."""

    async with open_store(tmp_path / "journal.sqlite", Clock()) as store:
        store.on_change(events.extend)
        evidence = Evidence(tmp_path / "evidence", 1 << 20, 1 << 20, events=nothing, probes=lambda _: ())
        context = EffectContext(SimulatedHypervisor(SimulatedHost()), BrokenImages(), store, evidence)  # type: ignore[arg-type]
        with capture_logs() as logs:
            await perform(context, observe, effect)
        assert store.state.breakers, "the planner waits before the next attempt"
    assert kind in {event.kind for event in events}
    assert says in next(event.detail for event in events if event.kind is kind)
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["call-raised"]


async def test_unforeseen_error_names_its_operation() -> None:
    async def fail() -> None:
        raise KeyError("host")

    with capture_logs(), pytest.raises(UnexpectedError, match="the clone failed unexpectedly: KeyError: 'host'"):
        await bounded(fail(), 1.0, "the clone")
