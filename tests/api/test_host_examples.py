"""The files in docs/host: the JSON Schema of the host document, and an example for each state of a host.

With `HEARTH_WRITE_EXAMPLES=1` the tests write these files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from agent.api.documents import PART_OF_CONDITION, host_document
from agent.api.schemas import HostDocument
from agent.app import api_parts
from agent.domain.breaker import Breaker, BreakerKey, Scope
from agent.domain.capacity import Limit
from agent.domain.model import Cause, Condition, ConditionStatus, Failure, HostMode, Mode
from agent.domain.plan import HEARTBEAT_LIMIT_S
from agent.domain.rollout import Phase
from agent.domain.states import VmState
from agent.images.contract import PullProgress
from tests.api.real_engine import COMING, NOW_S, POOL, SERVING, SMALL, RealEngine, vm

FOLDER = Path(__file__).parents[2] / "docs" / "host"
WRITE = os.environ.get("HEARTH_WRITE_EXAMPLES") == "1"
State = Callable[[RealEngine], None]
READY = (vm("hearth-small-1"), vm("hearth-small-2"))


def problem(kind: str, message: str) -> Condition:
    return Condition(kind, ConditionStatus.FALSE, "ObservationFailed", message, NOW_S - 60, problem=True)


def ready(engine: RealEngine) -> None:
    """Two warm VMs and no problem."""
    engine.records = READY


def filling(engine: RealEngine) -> None:
    """A new host: the image is being pulled, no VM runs yet."""
    engine.records = (replace(SERVING, serving=None, target=COMING, phase=Phase.PULLING),)
    engine.images.pulling = (
        PullProgress(SMALL.image, COMING, 26_843_545_600, 6_710_886_400, 6_710_886_400, 2.5e8, 80.5),
    )


def busy(engine: RealEngine) -> None:
    """The VM of every slot is leased or being torn down: no other VM fits."""
    engine.records = (vm("hearth-small-1", VmState.LEASED), vm("hearth-small-2", VmState.STOPPING))


def failing(engine: RealEngine) -> None:
    """A VM died, and the breaker of a version that cannot be pulled is open."""
    failure = Failure(Cause.EXITED, "its process ended with code 1", NOW_S - 5)
    engine.records = (
        vm("hearth-small-1"),
        replace(vm("hearth-small-2", VmState.FAILED), failure=failure),
        Breaker(BreakerKey(Scope.IMAGE, COMING), 3, NOW_S + 20, NOW_S - 10, "registry/small: 401 unauthorized"),
    )


def foreign(engine: RealEngine) -> None:
    """Foreign VMs hold more slots than the host has: it is overcommitted, and no figure is negative."""
    ready(engine)
    engine.guests.host.foreign = {"foreign-1": True, "foreign-2": True}


def full(engine: RealEngine) -> None:
    """The data volume is below its reserve."""
    engine.free_bytes = 1 << 30


def large(engine: RealEngine) -> None:
    """VMs so large that memory binds before slots do."""
    engine.pool = {**POOL, "memory_mib": 3000}


def cordoned(engine: RealEngine) -> None:
    """An operator cordoned the host: it grants no leases, and its pools stay warm."""
    engine.records = (*READY, HostMode(Mode.CORDONED, NOW_S - 600, "new rack switch"))


def draining(engine: RealEngine) -> None:
    """An operator drains the host: one lease remains."""
    engine.records = (
        vm("hearth-small-1", VmState.LEASED),
        HostMode(Mode.DRAINING, NOW_S - 600, "macOS update"),
    )


def blind(engine: RealEngine) -> None:
    """The hypervisor does not answer: the VMs are those of the latest observation."""
    ready(engine)
    engine.posted = (problem("HypervisorResponding", "`tart list` did not end within 10 s"),)


def stuck(engine: RealEngine) -> None:
    """The reconciler is stuck: no part is known to be current."""
    ready(engine)
    engine.heartbeat_age_s = HEARTBEAT_LIMIT_S + 5


STATES: tuple[State, ...] = (
    ready, filling, busy, failing, foreign, full, large, cordoned, draining, blind, stuck
)  # fmt: skip


async def document(state: State, folder: Path) -> dict[str, Any]:
    engine = RealEngine()
    state(engine)
    async with engine.open(folder) as opened:
        made: dict[str, Any] = json.loads(host_document(api_parts(opened)).model_dump_json())
    return made


def read_example(path: Path, made: object) -> Any:
    """Return the content of a file in docs/host. With `WRITE`, write it first."""
    if WRITE:
        FOLDER.mkdir(exist_ok=True)
        path.write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n")
    return json.loads(path.read_text())


def schema() -> dict[str, Any]:
    made = HostDocument.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def test_schema_in_docs_matches_the_code() -> None:
    assert read_example(FOLDER / "schema.json", schema()) == schema()


@pytest.mark.parametrize("state", STATES)
async def test_example_is_the_document_of_its_state(state: State, tmp_path: Path) -> None:
    made = await document(state, tmp_path)
    example = read_example(FOLDER / f"{state.__name__}.json", made)
    assert example == made
    jsonschema_rs.validator_for(schema()).validate(example)
    HostDocument.model_validate_json(json.dumps(example))


def test_examples_are_listed_in_their_readme() -> None:
    names = {path.stem for path in FOLDER.glob("*.json")} - {"schema"}
    assert names == {state.__name__ for state in STATES}
    listed = (FOLDER / "README.md").read_text()
    assert all(f"[{state.__name__}.json]({state.__name__}.json) | {state.__doc__}" in listed for state in STATES)


@pytest.mark.parametrize("state", STATES)
async def test_no_figure_is_negative_in_any_state(state: State, tmp_path: Path) -> None:
    def figures(node: object) -> list[float]:
        if isinstance(node, dict):
            return [figure for inner in node.values() for figure in figures(inner)]
        if isinstance(node, list):
            return [figure for inner in node for figure in figures(inner)]
        return [node] if isinstance(node, (int, float)) else []

    assert min(figures(await document(state, tmp_path))) >= 0


@pytest.mark.parametrize(
    ("state", "count", "limit"),
    [
        (ready, 0, Limit.SLOTS), (busy, 0, Limit.SLOTS), (foreign, 0, Limit.SLOTS), (large, 1, Limit.MEMORY),
        (filling, 2, Limit.SLOTS), (draining, 0, Limit.DRAINING), (full, 0, Limit.DISK),
    ],
)  # fmt: skip
async def test_startable_vms_are_counted_with_the_limit(state: State, count: int, limit: Limit, tmp_path: Path) -> None:
    (pool,) = (await document(state, tmp_path))["pools"]
    assert pool["startable"] == {"count": count, "limit": limit}


async def test_stale_parts_are_listed_with_their_reason(tmp_path: Path) -> None:
    assert (await document(ready, tmp_path / "ready"))["stale"] == []
    assert [item["part"] for item in (await document(stuck, tmp_path / "stuck"))["stale"]] == ["everything"]
    for kind, part in PART_OF_CONDITION.items():
        engine = RealEngine()
        engine.posted = (problem(kind, "broken"),)
        async with engine.open(tmp_path / kind) as opened:
            (stale,) = host_document(api_parts(opened)).stale
        assert (stale.part, stale.reason) == (part, "broken")
        assert stale.since is not None
