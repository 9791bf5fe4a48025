"""The documents of rollouts and evidence."""

from __future__ import annotations

from datetime import datetime

from agent.api.schemas import Count, Document, RolloutStatus


class PoolRollout(RolloutStatus):
    """The rollout of one pool."""

    pool: str


class RolloutList(Document):
    """The rollouts of all pools."""

    rollouts: tuple[PoolRollout, ...]


class EvidenceDocument(Document):
    """One file of a VM's evidence, with its path in the API."""

    name: str
    size_bytes: Count
    modified: datetime
    path: str


class EvidenceList(Document):
    """The evidence of a failed VM. `directory` is its folder on the host."""

    vm: str
    directory: str
    files: tuple[EvidenceDocument, ...]
