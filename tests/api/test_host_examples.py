"""docs/host: the JSON Schema of the host document, and one document for every state a host can be in.

`HEARTH_WRITE_EXAMPLES=1` writes them anew.
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

from agent.api.documents import LOOKED_AT, STALE_AFTER_S, host_document
from agent.api.schemas import HostDocument
from agent.domain.breaker import Breaker, BreakerKey, Scope
from agent.domain.capacity import Limit
from agent.domain.model import Cause, Condition, ConditionStatus, Failure, HostMode, Mode, VmSize
from agent.domain.rollout import Phase
from agent.domain.states import VmState
from agent.images.contract import PullProgress
from tests.api.memory_engine import COMING, NOW_S, SMALL, MemoryEngine, memory_parts, vm

FOLDER = Path(__file__).parents[2] / "docs" / "host"
WRITE = os.environ.get("HEARTH_WRITE_EXAMPLES") == "1"
State = Callable[[MemoryEngine], None]


def problem(kind: str, message: str) -> Condition:
    return Condition(kind, ConditionStatus.FALSE, "ObservationFailed", message, NOW_S - 60, problem=True)


def ready(engine: MemoryEngine) -> None:
    """Two warm VMs and no problem."""
    engine.vms = {name: vm(name) for name in ("hearth-small-1", "hearth-small-2")}


def filling(engine: MemoryEngine) -> None:
    """A new host: the image is being pulled, no VM runs yet."""
    engine.vms = {}
    engine.rollouts = {"small": replace(engine.rollouts["small"], serving=None, target=COMING, phase=Phase.PULLING)}
    engine.pulling = (PullProgress(SMALL.image, COMING, 26_843_545_600, 6_710_886_400, 6_710_886_400, 2.5e8, 80.5),)


def busy(engine: MemoryEngine) -> None:
    """The VM of every slot is leased or being torn down: no other VM fits."""
    engine.vms = {
        "hearth-small-1": vm("hearth-small-1", VmState.LEASED),
        "hearth-small-2": vm("hearth-small-2", VmState.STOPPING),
    }


def failing(engine: MemoryEngine) -> None:
    """A VM died, and the breaker of a version that cannot be pulled is open."""
    ready(engine)
    failed = Failure(Cause.EXITED, "its process ended with code 1", NOW_S - 5)
    engine.vms["hearth-small-2"] = replace(vm("hearth-small-2", VmState.FAILED), failure=failed)
    engine.breakers = {
        BreakerKey(Scope.IMAGE, COMING): Breaker(
            BreakerKey(Scope.IMAGE, COMING), 3, NOW_S + 20, NOW_S - 10, "registry/small: 401 unauthorized"
        )
    }


def foreign(engine: MemoryEngine) -> None:
    """Foreign VMs hold more slots than the host has: it is overcommitted, and no figure is negative."""
    ready(engine)
    engine.foreign_slots = 2


def full(engine: MemoryEngine) -> None:
    """The data volume is below its reserve."""
    engine.vms = {}
    engine.free_bytes = 1 << 30
    engine.disk_is_full = True


def large(engine: MemoryEngine) -> None:
    """VMs so large that memory binds before slots do."""
    engine.vms = {}
    engine.pools = {"small": replace(SMALL, size=VmSize(1, 3000))}


def cordoned(engine: MemoryEngine) -> None:
    """An operator cordoned the host: it grants no leases, and its pools stay warm."""
    ready(engine)
    engine.mode = HostMode(Mode.CORDONED, NOW_S - 600, "new rack switch")


def draining(engine: MemoryEngine) -> None:
    """An operator drains the host: one lease remains."""
    engine.vms = {"hearth-small-1": vm("hearth-small-1", VmState.LEASED)}
    engine.mode = HostMode(Mode.DRAINING, NOW_S - 600, "macOS update")


def blind(engine: MemoryEngine) -> None:
    """The hypervisor does not answer: the VMs are those of the latest observation."""
    ready(engine)
    engine.posted = (problem("HypervisorResponding", "`tart list` did not end within 10 s"),)


def stuck(engine: MemoryEngine) -> None:
    """The reconciler is stuck: no part is known to be current."""
    ready(engine)
    engine.age_s = STALE_AFTER_S + 5


STATES: tuple[State, ...] = (
    ready, filling, busy, failing, foreign, full, large, cordoned, draining, blind, stuck
)  # fmt: skip


def document(state: State) -> dict[str, Any]:
    engine = MemoryEngine()
    state(engine)
    made: dict[str, Any] = json.loads(host_document(memory_parts(engine)).model_dump_json())
    return made


def held(path: Path, made: object) -> Any:
    """Return what stands in a file of docs/, written first if that is asked for."""
    if WRITE:
        FOLDER.mkdir(exist_ok=True)
        path.write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n")
    return json.loads(path.read_text())


def schema() -> dict[str, Any]:
    made = HostDocument.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def test_the_schema_in_docs_is_the_one_of_the_code() -> None:
    assert held(FOLDER / "schema.json", schema()) == schema()


@pytest.mark.parametrize("state", STATES)
def test_the_example_of_a_state_is_what_the_agent_tells_in_it(state: State) -> None:
    example = held(FOLDER / f"{state.__name__}.json", document(state))
    assert example == document(state)
    jsonschema_rs.validator_for(schema()).validate(example)
    HostDocument.model_validate_json(json.dumps(example))


def test_every_example_is_of_a_state_and_listed() -> None:
    names = {path.stem for path in FOLDER.glob("*.json")} - {"schema"}
    assert names == {state.__name__ for state in STATES}
    listed = (FOLDER / "README.md").read_text()
    assert all(f"[{state.__name__}.json]({state.__name__}.json) | {state.__doc__}" in listed for state in STATES)


def test_no_figure_is_negative_in_any_state() -> None:
    def figures(node: object) -> list[float]:
        if isinstance(node, dict):
            return [figure for inner in node.values() for figure in figures(inner)]
        if isinstance(node, list):
            return [figure for inner in node for figure in figures(inner)]
        return [node] if isinstance(node, (int, float)) else []

    assert min(min(figures(document(state))) for state in STATES) >= 0


@pytest.mark.parametrize(
    ("state", "count", "limit"),
    [
        (ready, 0, Limit.SLOTS), (busy, 0, Limit.SLOTS), (foreign, 0, Limit.SLOTS), (large, 1, Limit.MEMORY),
        (filling, 2, Limit.SLOTS), (draining, 0, Limit.DRAINING), (full, 0, Limit.DISK),
    ],
)  # fmt: skip
def test_what_could_start_and_the_limit_that_binds(state: State, count: int, limit: Limit) -> None:
    (pool,) = document(state)["pools"]
    assert pool["startable"] == {"count": count, "limit": limit}


def test_what_is_stale_is_said() -> None:
    assert document(ready)["stale"] == []
    assert [item["what"] for item in document(stuck)["stale"]] == ["everything"]
    for kind, what in LOOKED_AT.items():
        engine = MemoryEngine()
        engine.posted = (problem(kind, "broken"),)
        (stale,) = host_document(memory_parts(engine)).stale
        assert (stale.what, stale.reason) == (what, "broken")
        assert stale.since is not None
