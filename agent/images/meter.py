"""How far one pull is and how fast it goes."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final

from agent.images.contract import PullProgress

if TYPE_CHECKING:
    from collections.abc import Callable

_WINDOW_S: Final = 5.0
_STEP_S: Final = 0.25


class Meter:
    """Counts one pull's bytes. The rate is that of the last five seconds."""

    def __init__(
        self, reference: str, digest: str, *, source: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._reference = reference
        self._digest = digest
        self._source = source
        self._clock = clock
        self._total = self._done = self._fetched = 0
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)])

    def expect(self, total: int) -> None:
        """Set the compressed size of the whole image."""
        self._total = total

    def received(self, count: int) -> None:
        """Count bytes that came over the wire."""
        self._fetched += count
        now_s = self._clock()
        if now_s - self._samples[-1][0] >= _STEP_S:
            self._samples.append((now_s, self._fetched))
            while len(self._samples) > 2 and now_s - self._samples[0][0] > _WINDOW_S:
                self._samples.popleft()

    def done(self, count: int) -> None:
        """Count bytes that are verified and in place, wherever they came from."""
        self._done += count

    def snapshot(self) -> PullProgress:
        """Return how far it is now."""
        since_s, before = self._samples[0]
        lasted_s = self._clock() - since_s
        rate = (self._fetched - before) / lasted_s if lasted_s > 0 else 0.0
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
        )
