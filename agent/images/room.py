"""Makes room for a pull: partial downloads first, then images nobody uses; or says what holds the space."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from agent.images.errors import DiskTooSmallError
from agent.images.space import Room, holders, size_text, victims

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from agent.images.shelf import Shelf
    from agent.images.store import Store

log = structlog.get_logger()


@dataclass(slots=True)
class RoomMaker:
    """Keeps the store within its volume and its budget.

    `in_use` names the versions that must stay: assigned, of a VM, or serving. It is None where nobody can tell, as for
    the command line beside a running agent; then nothing is ever removed.
    """

    store: Store
    shelf: Shelf
    reserve_bytes: int
    budget_bytes: int | None = None
    in_use: Callable[[], Collection[str]] | None = None

    def make(self, digest: str, needed: int) -> None:
        """Make room for `needed` bytes of an image, also when the disk is nearly full already.

        Raises `DiskTooSmallError`, before anything is removed in vain. Blocks.
        """
        if not self._missing(needed):
            return
        self.store.staging.sweep(older_than_s=0)
        missing = self._missing(needed)
        in_use = {digest, *(self.in_use() if self.in_use is not None else self.store.digests())}
        for image in victims(self.store.list(), in_use=in_use, missing=missing):
            self.store.remove(image.digest)
            self.shelf.drop(image.digest)
            log.info("image-evicted", image=image.digest, allocated_bytes=image.allocated_bytes, needed_for=digest)
            if not self._missing(needed):
                return
        if self._missing(needed):
            raise self._refusal(digest, needed, in_use if self.in_use is not None else ())

    def _room(self) -> Room:
        return Room(shutil.disk_usage(self.store.root).free, self.reserve_bytes, self.budget_bytes)

    def _missing(self, needed: int) -> int:
        return self._room().missing(needed, self.store.list())

    def _refusal(self, digest: str, needed: int, in_use: Collection[str]) -> DiskTooSmallError:
        room = self._room()
        budget = f", and images may take {size_text(room.budget)} together" if room.budget is not None else ""
        return DiskTooSmallError(
            f"the image {digest} needs {size_text(needed)} below {self.store.root}, where {size_text(room.free)} are "
            f"free and {size_text(room.reserve)} of them are kept in reserve{budget}; "
            f"the space is held by {holders(self.store.list(), in_use)}",
            remedy="remove images with `hearth image rm`, or lower host.disk_reserve_mib",
        )
