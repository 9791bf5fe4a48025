"""Judges a settled host: who owns what stands there, where the leases are, and what became of healthy VMs. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from scripts.lib.chaos.book import Ending
from scripts.lib.chaos.story import Fault, Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.lib.chaos.book import Book, Claim
    from scripts.lib.chaos.record import Document, Snapshot
    from scripts.lib.chaos.story import Story

EARLY_S: Final = 0.5
"""What clocks and answers may differ by when a lease ends at its time."""
FINAL_PHASES: Final = ("serving", "rolled-back")
"""Where a rollout has nothing more to do."""
RUNNING: Final = frozenset({"starting", "ready", "leased"})
"""States of a VM that must have a process."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A host as found: the journal, the processes of VMs by name, the entries of the folder of VMs, the API's word."""

    snapshot: Snapshot
    processes: dict[str, list[int]]
    files: frozenset[str]
    evidence: frozenset[str]
    served: dict[str, str]  # VM: state, as the API answers
    now_s: float


def judge(scene: Scene, book: Book, story: Story) -> list[Finding]:
    """Return every fault of a settled host. Claims that ended as they should are marked so in the book."""
    return [
        *_ownerless(scene, story),
        *_rows_of_nothing(scene),
        *_unlike_the_api(scene),
        *_leases(scene, book, story),
        *_strange_leases(scene, book),
        *_restarted(scene, book, story),
        *_untold(scene, story),
    ]


def _ownerless(scene: Scene, story: Story) -> Iterator[Finding]:
    rows = scene.snapshot.vms
    for name, pids in scene.processes.items():
        if name not in rows:
            yield Finding(Fault.LEAKED, f"processes {pids} of {name}, which has no row")
        elif len(pids) > 1:
            yield Finding(Fault.LEAKED, f"{name} has {len(pids)} processes: {pids}")
    for name in scene.files - rows.keys():
        yield Finding(Fault.LEAKED, f"files of {name}, which has no row")
    for name in scene.evidence:
        if not (name in story.lives and story.lives[name].seen["vm-failed"]):
            yield Finding(Fault.LEAKED, f"evidence of {name}, which never failed")


def _rows_of_nothing(scene: Scene) -> Iterator[Finding]:
    for name, row in scene.snapshot.vms.items():
        for what, there in (("process", scene.processes), ("files", scene.files)):
            if row["state"] in RUNNING and name not in there:
                yield Finding(Fault.LEAKED, f"the row of {name} says {row['state']}, but it has no {what}")


def _unlike_the_api(scene: Scene) -> Iterator[Finding]:
    told = {name: row["state"] for name, row in scene.snapshot.vms.items()}
    if told != scene.served:
        yield Finding(Fault.UNEXPLAINED, f"the API tells of {scene.served}, the journal of {told}")


def _leases(scene: Scene, book: Book, story: Story) -> Iterator[Finding]:
    """Find every lease that was answered and is not where it should be."""
    owners: dict[str, str] = {}
    for lease_id, lease in scene.snapshot.leases.items():
        if lease["vm"] in owners:
            yield Finding(Fault.DOUBLE_LEASED, f"{lease['vm']} is held by {owners[lease['vm']]} and {lease_id}")
        owners[lease["vm"]] = lease_id
        if scene.snapshot.leased(lease["vm"]) != lease_id:
            yield Finding(Fault.LOST, f"lease {lease_id} holds {lease['vm']}, whose row does not say so")
    for claim in book.claims:
        if claim.ending is not Ending.OVER:
            yield from _claim(claim, scene, book, story)


def _claim(claim: Claim, scene: Scene, book: Book, story: Story) -> Iterator[Finding]:
    row = scene.snapshot.leases.get(claim.lease)
    if row is not None:
        if claim.ending is Ending.RELEASED:
            yield Finding(Fault.LEAKED, f"lease {claim.lease} was released and is still there")
        elif claim.expires_at_s is not None and scene.now_s > claim.expires_at_s + 2:
            yield Finding(Fault.LEAKED, f"lease {claim.lease} is over and still there")
        elif row["vm"] != claim.vm:
            yield Finding(Fault.LOST, f"lease {claim.lease} was for {claim.vm} and is for {row['vm']} now")
        return
    ended = story.lease_ends.get(claim.lease)
    fair = {
        "lease-released": claim.ending is Ending.RELEASED,
        "lease-expired": claim.expires_at_s is not None and scene.now_s > claim.expires_at_s - EARLY_S,
        "lease-broken": claim.vm in book.harmed or book.is_doomed(story.lives[claim.vm].image),
    }
    if ended is None:
        yield Finding(Fault.LOST, f"lease {claim.lease} on {claim.vm} is gone without an event")
    elif not fair[ended]:
        yield Finding(Fault.LOST, f"lease {claim.lease} on {claim.vm} met {ended}, for no reason")
    claim.ending = Ending.OVER


def _strange_leases(scene: Scene, book: Book) -> Iterator[Finding]:
    known = {claim.lease for claim in book.claims}
    for lease_id, lease in scene.snapshot.leases.items():
        if lease_id not in known and lease["holder"] not in book.unanswered:
            yield Finding(Fault.LEAKED, f"lease {lease_id} of {lease['holder']}, who was told it has none")


def _restarted(scene: Scene, book: Book, story: Story) -> Iterator[Finding]:
    """Find the VMs that stood when the last round ended, were harmed by nobody, and do not stand as they did."""
    for name, pid in book.standing.items():
        if name in book.harmed or book.is_doomed(story.lives[name].image):
            continue
        now = scene.processes.get(name)
        if now is not None and now != [pid]:
            yield Finding(Fault.HEALTHY_RESTARTED, f"{name} was process {pid} and is {now}")
        elif name not in scene.snapshot.vms and not _may_be_gone(name, book, story):
            yield Finding(Fault.HEALTHY_RESTARTED, f"{name} was healthy and wanted, and is gone")


def _may_be_gone(name: str, book: Book, story: Story) -> bool:
    """Whether something happened that takes a healthy VM.

    Its lease ended, its pool wants others or fewer, or another pool outranks it: by priority, or by a request.
    """
    life = story.lives[name]
    by_lease = any(life.seen[end] for end in ("lease-released", "lease-expired"))
    outranked = len({wish.priority for wish in book.wishes.values()}) > 1 or book.deeds.asked - {life.pool}
    return by_lease or bool(outranked) or life.pool in book.deeds.wishes_changed | book.deeds.gave_up


def _untold(scene: Scene, story: Story) -> Iterator[Finding]:
    """Find the VMs that ended without an end in the events, and rows of VMs of which nothing was told."""
    for name, life in story.lives.items():
        if not life.seen["vm-gone"] and name not in scene.snapshot.vms:
            yield Finding(Fault.LOST, f"{name} is gone, and its story ends with {life.last}")
    for name in scene.snapshot.vms.keys() - story.lives.keys():
        yield Finding(Fault.UNEXPLAINED, f"{name} has a row and no story")


def not_settled(snapshot: Snapshot, book: Book, *, slots: int) -> list[str]:
    """Return what still keeps the host from being as desired; empty when it is."""
    reasons = [
        f"{name} is {row['state']}" for name, row in snapshot.vms.items() if row["state"] not in ("ready", "leased")
    ]
    ready = [row for row in snapshot.vms.values() if row["state"] == "ready"]
    reasons += [f"{row['name']} is of no pool" for row in ready if row["pool"] not in book.wishes]
    free = slots - sum(row["state"] == "leased" for row in snapshot.vms.values())
    room = free
    wants: dict[str, int] = {}
    for pool, wish in book.wishes.items():
        rollout = snapshot.rollouts.get(pool)
        reasons += _rollout(pool, rollout, book, ready, full=len(snapshot.vms) >= slots)
        wants[pool] = wish.warm if rollout and rollout.get("serving") else 0
    for pool in sorted(wants, key=lambda pool: -book.wishes[pool].priority):
        equals = [other for other in wants if book.wishes[other].priority == book.wishes[pool].priority]
        have, wanted = sum(row["pool"] == pool for row in ready), wants[pool]
        least = max(0, min(wanted, room - sum(wants[other] for other in equals if other != pool)))
        if not least <= have <= wanted:
            reasons.append(f"{pool} has {have} ready VMs and wants {wanted}")
        room = max(0, room - have)
    if len(ready) != min(max(0, free), sum(wants.values())):
        reasons.append(f"{len(ready)} VMs are ready, {free} slots are not leased, {sum(wants.values())} VMs are wanted")
    return reasons


def _rollout(pool: str, rollout: Document | None, book: Book, ready: list[Document], *, full: bool) -> Iterator[str]:
    if rollout is None:
        yield f"{pool} has no rollout"
        return
    if rollout["target"] != book.wishes[pool].version.digest:
        yield f"{pool} is not told of its version yet"
    mine = [row for row in ready if row["pool"] == pool]
    # Where leases and min_ready leave a new version no slot to prove itself in, the old one serves on.
    stuck = full and len(mine) <= (1 if book.wishes[pool].warm > 1 else 0)
    if rollout["phase"] not in FINAL_PHASES:
        if not stuck:
            yield f"the rollout of {pool} is {rollout['phase']}"
    elif any(row["image"] != rollout["serving"] for row in mine):
        yield f"{pool} has VMs of another version than the one that serves"
