"""Progress and rate of one pull."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from agent.images.contract import PullProgress

if TYPE_CHECKING:
    from collections.abc import Callable

_WINDOW_S: Final = 5.0
_STEP_S: Final = 0.25


class PullProgressTracker:
    """Counts the bytes of one pull. The rate is the mean of the last five seconds."""

    def __init__(
        self, reference: str, digest: str, *, source: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._reference = reference
        self._digest = digest
        self._source = source
        self._clock = clock
        self._total = self._done = self._fetched = 0
        self._advanced_at_s: float | None = None
        self._waiting: dict[str, str] = {}
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)])

    def set_total(self, total: int) -> None:
        """Set the compressed size of the image in bytes."""
        self._total = total

    def add_fetched(self, count: int) -> None:
        """Count bytes received over the network."""
        self._fetched += count
        now_s = self._clock()
        if now_s - self._samples[-1][0] >= _STEP_S:
            self._samples.append((now_s, self._fetched))
            while len(self._samples) > 2 and now_s - self._samples[0][0] > _WINDOW_S:
                self._samples.popleft()

    def add_done(self, count: int) -> None:
        """Count bytes that are verified and on the disk, whatever their source."""
        self._done += count

    def record_advance(self) -> None:
        """Record that a transfer made progress worth the name; `idle_s` counts from here."""
        self._advanced_at_s = self._clock()

    @property
    def idle_s(self) -> float:
        """Seconds since any transfer of the pull made progress; infinite if none has."""
        return math.inf if self._advanced_at_s is None else self._clock() - self._advanced_at_s

    def set_waiting(self, blob: str, reason: str) -> None:
        """Record why the transfer of a blob is retried; empty when it is not retried any more."""
        self._waiting.pop(blob, None)
        if reason:
            self._waiting[blob] = reason

    def snapshot(self) -> PullProgress:
        """Return the current progress."""
        since_s, before = self._samples[0]
        elapsed_s = self._clock() - since_s
        rate = (self._fetched - before) / elapsed_s if elapsed_s > 0 else 0.0
        left = max(0, self._total - self._done)
        return PullProgress(
            reference=self._reference,
            digest=self._digest,
            total_bytes=self._total,
            done_bytes=self._done,
            fetched_bytes=self._fetched,
            rate_bytes_per_s=rate,
            eta_s=left / rate if rate > 0 and self._total else None,
            source=self._source,
            waiting=self._waiting_text(),
        )

    def _waiting_text(self) -> str:
        if not self._waiting:
            return ""
        blob, reason = next(reversed(self._waiting.items()))
        more = f" and {len(self._waiting) - 1} more" if len(self._waiting) > 1 else ""
        return f"{blob[:19]}{more}: {reason}"
