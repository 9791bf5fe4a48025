"""The documents of the operator's part of the API: rollouts and evidence."""

from __future__ import annotations

from datetime import datetime

from agent.api.schemas import Count, Document, RolloutStatus


class PoolRollout(RolloutStatus):
    """How far the newest version of one pool is."""

    pool: str


class RolloutList(Document):
    """The rollouts of all pools."""

    rollouts: tuple[PoolRollout, ...]


class EvidenceDocument(Document):
    """One file of a VM's evidence, and where it is served."""

    name: str
    size_bytes: Count
    modified: datetime
    path: str


class EvidenceList(Document):
    """What is kept of a failed VM. `directory` is where it lies on the host."""

    vm: str
    directory: str
    files: tuple[EvidenceDocument, ...]
