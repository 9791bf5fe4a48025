"""Prometheus metrics of the agent: one object, one registry of its own, closed label sets, base units.

`pool` is bounded by the assignment; every other label takes its values from an enumeration. Image digests and VM names
are never labels: they would grow without end.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from agent.telemetry.request_histogram import RequestHistogram


class Outcome(StrEnum):
    """How a measured thing ended."""

    OK = "ok"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    REFUSED = "refused"


_TO_MINUTE: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TO_QUARTER: Final = (0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 900)
_TO_HOURS: Final = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
_WAITS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600)

_LAGS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)


class Metrics:
    """Every metric by name. Times are seconds, `outcome` is an `Outcome`."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        ProcessCollector(registry=self.registry)
        pool = ("pool", "outcome")
        request = ("route", "method", "status")

        self.pull = self._histogram("image_pull", "From a pull's start to a whole image.", ("outcome",), _TO_HOURS)
        self.clone = self._histogram("vm_clone", "A clone of an image.", pool, _TO_MINUTE)
        self.boot = self._histogram("vm_boot", "From a VM's start to its first proof of health.", pool, _TO_QUARTER)
        self.ready = self._histogram("vm_ready", "From a VM's creation to its turning ready.", pool, _TO_QUARTER)
        self.suspend = self._histogram("vm_suspend", "From a VM's memory to its file.", pool, _TO_QUARTER)
        self.resume = self._histogram("vm_resume", "From a saved memory to proof of health.", pool, _TO_QUARTER)
        self.teardown = self._histogram("vm_teardown", "From intent to proof that a VM is gone.", pool, _TO_QUARTER)
        self.replacement = self._histogram("vm_replacement", "From failure to the next ready VM.", pool, _TO_QUARTER)
        self.lease_wait = self._histogram("lease_wait", "From a lease request to its VM or refusal.", pool, _WAITS)
        self.tool_command = self._histogram("tool_command", "An external command.", ("tool", "outcome"), _TO_MINUTE)
        self.request = Histogram(
            "hearth_api_request_duration_seconds", "An API request, to its answer's end.", request, buckets=_WAITS,
            registry=None,
        )  # fmt: skip
        self.requests = RequestHistogram(self.request, self.registry)

        self.leases = self._counter("leases", "Lease requests.", pool)
        self.vm_failures = self._counter("vm_failures", "VMs that failed.", ("pool", "cause"))
        self.probe_failures = self._counter("probe_failures", "Probe answers that were no pass.", ("pool", "cause"))
        self.tool_timeouts = self._counter("tool_timeouts", "External commands that had to be ended.", ("tool",))
        self.adopted = self._counter("vms_adopted", "VMs found running after a restart of the agent.", ())
        self.orphaned = self._counter("vms_orphaned", "VMs of ours on the host that the journal did not know.", ())
        self.leaked = self._counter("vms_leaked", "Teardowns that could not be proven.", ())

        self.slots = self._gauge("slots", "Slots of this host by what holds them.", ("state",))
        self.vms = self._gauge("vms", "VMs by pool and state.", ("pool", "state"))
        self.warm_target = self._gauge("pool_warm_target", "VMs a pool should keep ready.", ("pool",))
        self.waiters = self._gauge("lease_waiters", "Lease requests that wait for a VM.", ("pool",))
        self.condition = self._gauge("condition_problem", "1 for a condition that needs attention.", ("type",))
        self.breakers = self._gauge("breakers", "Things that failed lately, by what they are.", ("scope", "state"))
        self.build = self._gauge("build_info", "Always 1; says what runs here.", ("version", "hypervisor"))
        self.heartbeat_age = self._gauge("loop_heartbeat_age_seconds", "Since the loop last finished a turn.", ())

        self.loop_lag = Histogram(
            "hearth_event_loop_lag_seconds", "How late the event loop woke.", buckets=_LAGS, registry=self.registry
        )

    def _histogram(self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"hearth_{name}_duration_seconds", text, labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"hearth_{name}_total", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(f"hearth_{name}", text, labels, registry=self.registry)
