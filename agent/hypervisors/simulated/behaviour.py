"""How simulated VMs behave: how long things take, and how often they go wrong. Values only; chance comes in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final, TypeAlias

Distribution: TypeAlias = Callable[[Random], float]
"""Draws a duration in seconds."""


def constant(seconds: float) -> Distribution:
    """Always the same."""
    return lambda _rng: seconds


def uniform(low_s: float, high_s: float) -> Distribution:
    """Anything between two durations, all alike."""
    return lambda rng: rng.uniform(low_s, high_s)


def lognormal(median_s: float, sigma: float) -> Distribution:
    """Mostly near the median with a long tail of slow ones, as boots and clones really are."""
    return lambda rng: rng.lognormvariate(math.log(median_s), sigma)


_QUICKLY: Final = constant(0.01)
_SOON: Final = constant(0.05)
_LATER: Final = constant(60.0)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One kind of VM. Durations are drawn for each VM; the plain numbers are chances from 0 to 1."""

    clone_s: Distribution = _QUICKLY
    start_s: Distribution = _QUICKLY
    boot_s: Distribution = _SOON
    shutdown_s: Distribution = _QUICKLY
    suspend_s: Distribution = _QUICKLY
    resume_s: Distribution = _QUICKLY  # also of the start of a clone of a template
    save_s: Distribution = _QUICKLY  # of a template
    clone_fails: float = 0.0  # leaves nothing behind
    clone_breaks: float = 0.0  # leaves a half-made VM behind
    start_fails: float = 0.0
    resume_fails: float = 0.0  # the memory is used up all the same
    save_fails: float = 0.0
    lacks_hook: float = 0.0  # the guest cannot become another, so no template can be made of it
    never_boots: float = 0.0
    ignores_shutdown: float = 0.0
    stop_fails: float = 0.0  # it runs on
    delete_fails: float = 0.0  # its files stay
    dies: float = 0.0
    dies_after_s: Distribution = _LATER
    hangs: float = 0.0
    hangs_after_s: Distribution = _LATER
