"""The composition root: builds every object of a running agent from its configuration, and holds no logic.

What needs an end is ended by the exit stack it is built on, in the reverse order.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import aiohttp
from ulid import ULID

from agent import __version__
from agent.api.application import build_application
from agent.api.auth import Role, TokenGate, tokens_path
from agent.api.limits import Rate, RateLimiter
from agent.api.server import Server
from agent.domain.capacity import startable
from agent.domain.rules import images_in_use
from agent.engine.assignments import Assignments
from agent.engine.conditions import ConditionBoard
from agent.engine.database import Database
from agent.engine.effect_context import EffectContext
from agent.engine.effects import Effects
from agent.engine.engine import Engine, Parts
from agent.engine.evidence import Evidence
from agent.engine.executor import Executor
from agent.engine.history import History
from agent.engine.leases import LeaseDesk
from agent.engine.metering import Metering
from agent.engine.observer import Observer
from agent.engine.operator_commands import OperatorCommands
from agent.engine.probe_runner import ProbeRunner
from agent.engine.prober import Prober
from agent.engine.reconciler import Reconciler
from agent.engine.state_store import StateStore
from agent.engine.vm_updates import VmUpdates
from agent.engine.world_builder import WorldBuilder
from agent.host.disk_space import measure_disk
from agent.host.doctor.doctor import build_doctor, build_subject
from agent.host.host_info import host_limits, read_host_identity
from agent.host.host_monitor import HostMonitor
from agent.host.power_assertion import PowerAssertion
from agent.host.user_accounts import current_user
from agent.host.vitals import VitalsSampler, measure_vitals
from agent.hypervisors.choose import build_hypervisor
from agent.images.choose import choose_images
from agent.processes.command import CommandRunner
from agent.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AsyncExitStack

    from agent.config import Config
    from agent.domain.health import ProbeResult
    from agent.domain.model import HostLimits, PoolSpec, World
    from agent.host.host_info import HostIdentity
    from agent.hypervisors.contract import Hypervisor
    from agent.images.contract import Images


_ANONYMOUS: Final = {"read": Role.READ, "token": Role.NONE, "open": Role.ADMIN}
"""What TCP callers without a token may do, by `api.auth`."""


@dataclass(frozen=True, slots=True)
class App:
    """A built agent: the engine, and the server that speaks for it."""

    engine: Engine
    api: Server
    metrics: Metrics
    board: ConditionBoard
    watch: HostMonitor
    appliers: Mapping[str, Callable[[Config], None]]  # what applies a configuration key while the agent runs


@dataclass(slots=True)
class _Settings:
    """What the engine reads of the configuration again and again, since it may change while the agent runs."""

    limits: HostLimits


@dataclass(frozen=True, slots=True)
class _Ground:
    """What an engine is built on."""

    settings: _Settings
    board: ConditionBoard
    hypervisor: Hypervisor
    images: Images
    database: Database
    http: aiohttp.ClientSession
    metering: Metering
    jitter: Callable[[], float]
    identity: HostIdentity
    pulse: VitalsSampler


async def build(
    config: Config,
    stack: AsyncExitStack,
    *,
    hypervisor: Hypervisor | None = None,
    jitter: Callable[[], float] | None = None,
) -> App:
    """Build an agent and prove its hypervisor: the configured one, unless one is given.

    Raises `HearthError` when the agent cannot work here.
    """
    metrics = Metrics()
    metering = Metering(metrics)
    hypervisor = hypervisor or build_hypervisor(config, metering.command)
    stack.push_async_callback(hypervisor.close)
    await hypervisor.preflight()
    images = await stack.enter_async_context(choose_images(config, hypervisor.name, CommandRunner(metering.command)))
    database = await Database.open(config.data_dir / "journal.sqlite")
    stack.push_async_callback(database.close)
    http = await stack.enter_async_context(aiohttp.ClientSession())
    settings, board = _Settings(host_limits(config.host)), ConditionBoard()
    jitter = jitter or random.SystemRandom().random
    runner, pulse = CommandRunner(metering.command), VitalsSampler(partial(measure_vitals, config.data_dir))
    identity = await read_host_identity(
        runner, agent_version=__version__, hypervisor=hypervisor.name, hypervisor_version=hypervisor.version
    )
    ground = _Ground(settings, board, hypervisor, images, database, http, metering, jitter, identity, pulse)
    engine = _engine(config, ground)
    gate = TokenGate(tokens_path(config.data_dir), anonymous=_ANONYMOUS[config.api.auth])
    limiter = RateLimiter(Rate(config.api.rate_per_s, config.api.rate_burst))
    server = Server(
        build_application(engine, metrics, gate, limiter),
        host=config.api.host, port=config.api.port, socket_path=config.socket_path,
        port_file=config.data_dir / "api.port", tls=config.api.tls,
    )  # fmt: skip
    watch = _watch(config, engine, board, runner, pulse)
    return App(engine, server, metrics, board, watch, _appliers(settings, images, limiter, watch))


def _watch(
    config: Config, engine: Engine, board: ConditionBoard, runner: CommandRunner, pulse: VitalsSampler
) -> HostMonitor:
    account, hypervisor = current_user(), engine.identity().hypervisor
    doctor = build_doctor(lambda: build_subject(config, account, hypervisor, in_agent=True), runner)
    awake = (
        PowerAssertion(runner, lambda: any(vm.alive for vm in engine.world().vms)) if sys.platform == "darwin" else None
    )
    return HostMonitor(doctor, board.post, period_s=config.host.doctor_period_s, vitals=pulse, power_assertion=awake)


def _appliers(
    settings: _Settings, images: Images, limiter: RateLimiter, watch: HostMonitor
) -> Mapping[str, Callable[[Config], None]]:
    """Return what applies each key that needs no restart."""

    def apply_limits(config: Config) -> None:
        settings.limits = host_limits(config.host)

    def apply_bandwidth(config: Config) -> None:
        cap = config.images.bandwidth_mib_per_s
        images.limit_bandwidth(None if cap is None else cap * 2**20)

    def apply_rate(config: Config) -> None:
        limiter.rate = Rate(config.api.rate_per_s, config.api.rate_burst)

    def apply_period(config: Config) -> None:
        watch.set_period(config.host.doctor_period_s)

    rate = ("api.rate_per_s", "api.rate_burst")
    limits = ("host.slots", "host.cpus", "host.memory_mib", "host.memory_reserve_mib")
    return {
        **dict.fromkeys(limits, apply_limits),
        **dict.fromkeys(rate, apply_rate),
        "host.doctor_period_s": apply_period,
        "images.bandwidth_mib_per_s": apply_bandwidth,
    }


def _engine(config: Config, ground: _Ground) -> Engine:
    hypervisor, images, database, jitter = ground.hypervisor, ground.images, ground.database, ground.jitter
    clock, awake = time.time, asyncio.Event()
    metering = ground.metering
    store = StateStore(database, clock=clock)
    store.on_change(metering.count)
    measure = partial(measure_disk, config.data_dir, config)
    observer = Observer(hypervisor, images, measure)
    history = History(store, database)

    def last_answers(vm: str) -> tuple[ProbeResult, ...]:
        return prober.recent(vm)

    evidence = Evidence(
        config.data_dir / "evidence", config.evidence.max_mib * 2**20, config.evidence.max_vm_mib * 2**20,
        events=history.of_vm, probes=last_answers,
    )  # fmt: skip
    context = EffectContext(hypervisor, images, store, evidence, jitter)
    effects = Effects(context, observer.look_at_stock)
    executor = Executor(effects.perform, awake.set)
    assignments = Assignments(store, source=config.assignment.source, file=config.assignment_path, on_change=awake.set)

    def pools() -> tuple[PoolSpec, ...]:
        return assignments.held.document.specs()

    def pool(name: str) -> PoolSpec | None:
        return next((spec for spec in pools() if spec.name == name), None)

    looked = False  # whether a turn has seen what became of the VMs while no agent ran

    def busy() -> frozenset[str]:
        return executor.busy | updates.ended if looked else frozenset(store.vms)

    def why_none(spec: PoolSpec) -> str:
        count, limit = startable(view.world(), spec)
        return "one is being started" if count else f"no other fits, {limit} bind"

    desk = LeaseDesk(
        store, pool=pool, busy=busy, why_none=why_none, on_refused=metering.refusal,
        new_id=lambda: str(ULID()).lower(), clock=clock, wake=awake.set,
    )  # fmt: skip
    view = WorldBuilder(
        store, desk, executor, observer, hypervisor.capabilities, lambda: ground.settings.limits,
        config.images.resolve_period_s, pools=pools, jitter=jitter, clock=clock,
    )  # fmt: skip
    operations = OperatorCommands(store, desk, wake=awake.set)
    updates = VmUpdates(store, jitter=jitter, awake=awake)
    probe_runner = ProbeRunner(hypervisor, ground.http, clock=clock)
    prober = Prober(probe_runner, updates, on_answer=metering.answer, clock=clock)

    in_use: frozenset[str] = frozenset()
    images.protect(lambda: in_use)

    def after_turn(world: World) -> None:
        nonlocal in_use, looked
        in_use = images_in_use(world)
        if not looked:
            looked = True
            awake.set()  # for the requests that came before
        prober.sync(world.vms, world.pool, world.busy)
        ground.board.post([assignments.condition(world.now_s)])

    reconciler = Reconciler(store, desk, executor, observer, ground.board, view, after_turn=after_turn, awake=awake)
    return Engine(
        Parts(
            store=store, history=history, evidence=evidence, hypervisor=hypervisor, images=images,
            observer=observer, assignments=assignments, leases=desk, operations=operations, executor=executor,
            board=ground.board, prober=prober, updates=updates, reconciler=reconciler, view=view,
            identity=ground.identity, awake=awake, vitals=lambda: ground.pulse.latest,
        )
    )  # fmt: skip
