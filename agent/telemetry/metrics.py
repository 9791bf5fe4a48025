"""Prometheus metrics of the agent, in one registry, with base units and closed label sets.

The values of `pool` are bounded by the assignment; every other label takes its values from an enumeration. Image
digests and VM names are never labels, because their number grows without limit.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

MAX_BUFFERED_REQUESTS: Final = 512
"""Requests that are buffered before they are counted. Counting takes a lock for each bucket and sum. Done for each
request between two system calls it took up to a fifth of the time of a response; done for many in a row it is cheap."""


class Outcome(StrEnum):
    """Outcome of a measured operation."""

    OK = "ok"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    REFUSED = "refused"


_BUCKETS_TO_1_MIN: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BUCKETS_TO_15_MIN: Final = (0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 900)
_BUCKETS_TO_2_H: Final = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
_BUCKETS_OF_WAITS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600)

_BUCKETS_OF_LAG: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)


class Metrics:
    """All metrics. Times are in seconds; the label `outcome` is an `Outcome`."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        ProcessCollector(registry=self.registry)
        pool = ("pool", "outcome")
        request = ("route", "method", "status")

        self.pull = self._histogram(
            "image_pull",
            "Time from the start of an image pull to the complete, verified image.",
            ("outcome",),
            _BUCKETS_TO_2_H,
        )
        self.clone = self._histogram("vm_clone", "Time to clone an image into a new VM.", pool, _BUCKETS_TO_1_MIN)
        self.boot = self._histogram(
            "vm_boot", "Time from the start of a VM until it passed its startup probes.", pool, _BUCKETS_TO_15_MIN
        )
        self.ready = self._histogram(
            "vm_ready", "Time from the creation of a VM until it was ready.", pool, _BUCKETS_TO_15_MIN
        )
        self.suspend = self._histogram(
            "vm_suspend", "Time to suspend a VM: to write its memory to a snapshot.", pool, _BUCKETS_TO_15_MIN
        )
        self.resume = self._histogram(
            "vm_resume",
            "Time from the start of a resume from snapshot until the VM passed its startup probes.",
            pool,
            _BUCKETS_TO_15_MIN,
        )
        self.teardown = self._histogram(
            "vm_teardown",
            "Time from the decision to remove a VM until its absence was verified.",
            pool,
            _BUCKETS_TO_15_MIN,
        )
        self.replacement = self._histogram(
            "vm_replacement",
            "Time from the failure of a VM until another VM of its pool was ready.",
            pool,
            _BUCKETS_TO_15_MIN,
        )
        self.lease_wait = self._histogram(
            "lease_wait", "Time from a lease request until it was granted or refused.", pool, _BUCKETS_OF_WAITS
        )
        self.tool_command = self._histogram(
            "tool_command", "Run time of an external command.", ("tool", "outcome"), _BUCKETS_TO_1_MIN
        )
        self.request = Histogram(
            "hearth_api_request_duration_seconds", "Time from an API request to the end of its response.", request,
            buckets=_BUCKETS_OF_WAITS, registry=None,
        )  # fmt: skip
        self.requests = RequestHistogram(self.request, self.registry)

        self.leases = self._counter("leases", "Lease requests by outcome.", pool)
        self.vm_failures = self._counter("vm_failures", "VMs that failed, by cause.", ("pool", "cause"))
        self.probe_failures = self._counter("probe_failures", "Probes that did not pass, by cause.", ("pool", "cause"))
        self.tool_timeouts = self._counter(
            "tool_timeouts", "External commands that were killed after their timeout.", ("tool",)
        )
        self.adopted = self._counter("vms_adopted", "VMs adopted: found running after a restart of the agent.", ())
        self.orphaned = self._counter(
            "vms_orphaned", "VMs of this agent that were found on the host but not in the journal.", ()
        )
        self.leaked = self._counter("vms_leaked", "VMs whose removal could not be verified.", ())

        self.slots = self._gauge("slots", "Slots of this host by state.", ("state",))
        self.vms = self._gauge("vms", "Current number of VMs by pool and state.", ("pool", "state"))
        self.warm_target = self._gauge("pool_warm_target", "Number of ready VMs that a pool should have.", ("pool",))
        self.waiters = self._gauge("lease_waiters", "Current number of lease requests that wait for a VM.", ("pool",))
        self.condition = self._gauge(
            "condition_problem", "1 if the condition is a problem that needs attention, otherwise 0.", ("type",)
        )
        self.breakers = self._gauge(
            "breakers",
            "Circuit breakers by scope and state. An open breaker delays the next attempt.",
            ("scope", "state"),
        )
        self.build = self._gauge(
            "build_info",
            "Always 1. Its labels are the versions of the agent and the hypervisor.",
            ("version", "hypervisor"),
        )
        self.heartbeat_age = self._gauge(
            "loop_heartbeat_age_seconds", "Time since the reconciler last completed a reconcile pass.", ()
        )

        self.loop_lag = Histogram(
            "hearth_event_loop_lag_seconds",
            "Delay of the event loop: how much later than scheduled it woke up.",
            buckets=_BUCKETS_OF_LAG,
            registry=self.registry,
        )

    def _histogram(self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"hearth_{name}_duration_seconds", text, labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"hearth_{name}_total", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(f"hearth_{name}", text, labels, registry=self.registry)


class RequestHistogram(Collector):
    """Buffers request durations and adds them to a histogram in batches. Takes the histogram's place in the registry.

    The labels of the histogram are route, method and status. Use it only on the event loop's thread.
    """

    def __init__(self, histogram: Histogram, registry: CollectorRegistry) -> None:
        self.histogram = histogram
        self._children: dict[tuple[str, str, int | str], Histogram] = {}
        self._buffer: list[tuple[tuple[str, str, int | str], float]] = []
        registry.register(self)

    def note(self, route: str, method: str, status: int | str, duration_s: float) -> None:
        """Buffer one request. `status` is the HTTP status, or a word for the reason that no response was sent."""
        self._buffer.append(((route, method, status), duration_s))
        if len(self._buffer) >= MAX_BUFFERED_REQUESTS:
            self._flush()

    def collect(self) -> Iterable[Metric]:
        """Return the samples of all requests so far."""
        self._flush()
        return self.histogram.collect()

    def describe(self) -> Iterable[Metric]:
        """Return the histogram without samples."""
        return self.histogram.describe()

    def _flush(self) -> None:
        for labels, duration_s in self._buffer:
            child = self._children.get(labels)
            if child is None:
                child = self._children[labels] = self.histogram.labels(*labels)
            child.observe(duration_s)
        self._buffer.clear()
