"""The condition board: when each condition changed, and one log line per change."""

from __future__ import annotations

import structlog

from agent.domain.model import Condition, ConditionStatus
from agent.engine.conditions import ConditionBoard


def condition(status: ConditionStatus, reason: str, message: str, since_s: float) -> Condition:
    return Condition("Ready", status, reason, message, since_s, problem=status is ConditionStatus.FALSE)


def test_since_changes_with_status_or_reason_only() -> None:
    board, bad, good = ConditionBoard(), ConditionStatus.FALSE, ConditionStatus.TRUE
    readings = [
        (condition(bad, "PoolsNotWarm", "0 of 2", 1.0), 1.0),
        (condition(bad, "PoolsNotWarm", "1 of 2", 2.0), 1.0),
        (condition(bad, "NoLeases", "cordoned", 3.0), 3.0),
        (condition(good, "PoolsWarm", "", 4.0), 4.0),
        (condition(good, "PoolsWarm", "", 5.0), 4.0),
    ]
    with structlog.testing.capture_logs() as lines:
        for reading, since_s in readings:
            board.post([reading])
            (kept,) = board.all()
            assert (kept.message, kept.since_s) == (reading.message, since_s)
    assert [line["reason"] for line in lines] == ["PoolsNotWarm", "NoLeases", "PoolsWarm"]


def test_post_problem_is_true_without_a_reason() -> None:
    board = ConditionBoard()
    board.post_problem("JournalWritable", 1.0, reason="WriteFailed", message="the disk is full")
    assert board.as_mapping()["JournalWritable"].problem
    board.post_problem("JournalWritable", 2.0)
    assert board.as_mapping()["JournalWritable"] == Condition(
        "JournalWritable", ConditionStatus.TRUE, "AsExpected", "", 2.0
    )
