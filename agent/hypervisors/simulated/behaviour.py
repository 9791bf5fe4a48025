"""The behaviour of simulated VMs: the distribution of each duration, and the probability of each failure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final, TypeAlias

Distribution: TypeAlias = Callable[[Random], float]
"""Draws a duration in seconds."""


def constant(seconds: float) -> Distribution:
    """Return a distribution with a single value."""
    return lambda _rng: seconds


def uniform(low_s: float, high_s: float) -> Distribution:
    """Return the uniform distribution between two durations."""
    return lambda rng: rng.uniform(low_s, high_s)


def lognormal(median_s: float, sigma: float) -> Distribution:
    """Return a distribution near the median with a long tail of slow values, like real boots and clones."""
    return lambda rng: rng.lognormvariate(math.log(median_s), sigma)


_QUICK: Final = constant(0.01)
_SHORT: Final = constant(0.05)
_LONG: Final = constant(60.0)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One kind of VM. Durations are drawn for each VM; plain numbers are probabilities from 0 to 1."""

    clone_s: Distribution = _QUICK
    start_s: Distribution = _QUICK
    boot_s: Distribution = _SHORT
    shutdown_s: Distribution = _QUICK
    suspend_s: Distribution = _QUICK
    resume_s: Distribution = _QUICK  # also for the start of a clone of a template
    save_s: Distribution = _QUICK  # for a template
    clone_fails: float = 0.0  # and leaves no files
    clone_breaks: float = 0.0  # and leaves an incomplete VM
    start_fails: float = 0.0
    resume_fails: float = 0.0  # and removes the snapshot
    save_fails: float = 0.0
    lacks_hook: float = 0.0  # the guest cannot reinitialise its identity, so it cannot become a template
    never_boots: float = 0.0
    ignores_shutdown: float = 0.0
    stop_fails: float = 0.0  # and the VM runs on
    delete_fails: float = 0.0  # and the files stay
    dies: float = 0.0
    dies_after_s: Distribution = _LONG
    hangs: float = 0.0
    hangs_after_s: Distribution = _LONG
