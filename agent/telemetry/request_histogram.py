"""How long API requests took: noted while they are answered, counted when somebody looks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry, Histogram
    from prometheus_client.metrics_core import Metric

MOST_NOTED: Final = 512
"""Notes kept before they are counted. Counting costs a lock for every bucket and sum, which one by one, between two
system calls, took as long as a fifth of a whole answer; many in a row cost next to nothing."""


class RequestHistogram(Collector):
    """Fills a histogram with the labels route, method, status, and stands for it in the registry.

    For one thread, the event loop's.
    """

    def __init__(self, histogram: Histogram, registry: CollectorRegistry) -> None:
        self.histogram = histogram
        self._children: dict[tuple[str, str, int | str], Histogram] = {}
        self._noted: list[tuple[tuple[str, str, int | str], float]] = []
        registry.register(self)

    def note(self, route: str, method: str, status: int | str, duration_s: float) -> None:
        """Remember one request: its `status` is the answer's, or a word for why there was none."""
        self._noted.append(((route, method, status), duration_s))
        if len(self._noted) >= MOST_NOTED:
            self._count()

    def collect(self) -> Iterable[Metric]:
        """Return the histogram, up to date."""
        self._count()
        return self.histogram.collect()

    def describe(self) -> Iterable[Metric]:
        """Return what the registry needs to know of the histogram."""
        return self.histogram.describe()

    def _count(self) -> None:
        for labels, duration_s in self._noted:
            child = self._children.get(labels)
            if child is None:
                child = self._children[labels] = self.histogram.labels(*labels)
            child.observe(duration_s)
        self._noted.clear()
