"""The documents of the operator's part of the API: rollouts and evidence."""

from __future__ import annotations

from agent.api.schemas import Document, RolloutStatus


class PoolRollout(RolloutStatus):
    """How far the newest version of one pool is."""

    pool: str


class RolloutList(Document):
    """The rollouts of all pools."""

    rollouts: tuple[PoolRollout, ...]
