"""The composition root: builds every object of a running agent from its configuration. It holds no logic.

The exit stack closes what needs closing, in reverse order.
"""

from __future__ import annotations

import asyncio
import random
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import aiohttp
from ulid import ULID

from agent import __version__
from agent.api.application import build_application
from agent.api.auth import Role, TokenAuthenticator, tokens_path
from agent.api.engine_protocols import EngineParts
from agent.api.rate_limit import Rate, RateLimiter
from agent.api.server import Server
from agent.domain.rules import images_in_use
from agent.engine.assignments import Assignments
from agent.engine.clock_follower import ClockFollower
from agent.engine.conditions import ConditionBoard
from agent.engine.database import Database
from agent.engine.effect_context import EffectContext
from agent.engine.effects import perform
from agent.engine.engine import Engine, Parts
from agent.engine.evidence import Evidence
from agent.engine.executor import Executor
from agent.engine.guests import Guests
from agent.engine.history import History
from agent.engine.host_reader import HostReader
from agent.engine.leases import LeaseDesk, LeaseQueue
from agent.engine.metering import Metering
from agent.engine.observer import Observer
from agent.engine.operator_commands import OperatorCommands
from agent.engine.probe_runner import ProbeRunner
from agent.engine.prober import Prober, ProbeResults
from agent.engine.reconciler import Reconciler
from agent.engine.state_store import StateStore
from agent.engine.vm_updates import VmUpdates
from agent.engine.world_builder import WorldBuilder
from agent.host.clock import HostClock
from agent.host.disk_space import measure_disk
from agent.host.doctor.doctor import build_doctor, build_subject
from agent.host.host_info import host_limits, read_host_identity
from agent.host.host_monitor import HostMonitor
from agent.host.power_assertion import PowerAssertion
from agent.host.user_accounts import current_user
from agent.host.vitals import VitalsSampler, measure_vitals
from agent.hypervisors.factory import build_hypervisor
from agent.images.host_images import open_host_images
from agent.processes.boot import boot_id
from agent.processes.command import CommandRunner
from agent.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AsyncExitStack

    from agent.config import Config
    from agent.domain.model import HostLimits
    from agent.domain.world import World
    from agent.host.disk_space import DiskUsage
    from agent.host.host_info import HostIdentity
    from agent.hypervisors.contract import Hypervisor
    from agent.images.contract import Images


_ANONYMOUS: Final = {"read": Role.READ, "token": Role.NONE, "open": Role.ADMIN}
"""What TCP callers without a token may do, by `api.auth`."""


@dataclass(frozen=True, slots=True)
class App:
    """A built agent: its engine, its API server, and the parts that the daemon runs."""

    engine: Engine
    api: Server
    metrics: Metrics
    board: ConditionBoard
    watch: HostMonitor
    appliers: Mapping[str, Callable[[Config], None]]  # what applies a configuration key while the agent runs

    async def start(self) -> None:
        """Load the journal, serve the API, and adopt the running VMs. Raises `HearthError` if the agent cannot start.

        The API is served during the adoption, which can take minutes with a slow tool. It is not served before the
        journal is loaded: it would deny leases that exist.
        """
        await self.engine.load()
        await self.api.start()
        await self.engine.start()


@dataclass(slots=True)
class LiveSettings:
    """Settings that can change while the agent runs, for the engine to read on each use."""

    limits: HostLimits


@dataclass(frozen=True, slots=True)
class Foundation:
    """The parts that the engine, the API and the host monitor are built on. `clock` is the agent's time.

    `measure_disk` is called in a thread.
    """

    config: Config
    settings: LiveSettings
    board: ConditionBoard
    hypervisor: Hypervisor
    images: Images
    database: Database
    http: aiohttp.ClientSession
    metrics: Metrics
    metering: Metering
    runner: CommandRunner
    clock: HostClock
    jitter: Callable[[], float]
    measure_disk: Callable[[], DiskUsage]
    identity: HostIdentity
    vitals: VitalsSampler


async def build(
    config: Config,
    stack: AsyncExitStack,
    *,
    hypervisor: Hypervisor | None = None,
    jitter: Callable[[], float] | None = None,
) -> App:
    """Build an agent and check its hypervisor: the configured one, unless one is given.

    Raises `HearthError` when the agent cannot work on this host.
    """
    foundation = await _build_foundation(config, stack, hypervisor, jitter or random.SystemRandom().random)
    store = build_store(foundation)
    engine = build_engine(foundation, store)
    limiter = RateLimiter(Rate(config.api.rate_per_s, config.api.rate_burst))
    server = build_api(foundation, engine, limiter)
    monitor = _build_host_monitor(foundation, store)
    appliers = _appliers(foundation.settings, foundation.images, limiter, monitor)
    return App(engine, server, foundation.metrics, foundation.board, monitor, appliers)


async def _build_foundation(
    config: Config, stack: AsyncExitStack, hypervisor: Hypervisor | None, jitter: Callable[[], float]
) -> Foundation:
    metrics = Metrics()
    metering = Metering(metrics)
    runner = CommandRunner(metering.count_command)
    hypervisor = hypervisor or build_hypervisor(config, metering.count_command)
    stack.push_async_callback(hypervisor.close)
    await hypervisor.preflight()
    images = await stack.enter_async_context(open_host_images(config, hypervisor.name, runner))
    database = await Database.open(config.data_dir / "journal.sqlite")
    stack.push_async_callback(database.close)
    http = await stack.enter_async_context(aiohttp.ClientSession())
    identity = await read_host_identity(
        runner, agent_version=__version__, hypervisor=hypervisor.name, hypervisor_version=hypervisor.version
    )
    return Foundation(
        config=config, settings=LiveSettings(host_limits(config.host)), board=ConditionBoard(), hypervisor=hypervisor,
        images=images, database=database, http=http, metrics=metrics, metering=metering, runner=runner,
        clock=HostClock(), jitter=jitter, measure_disk=partial(measure_disk, config.data_dir, config),
        identity=identity, vitals=VitalsSampler(partial(measure_vitals, config.data_dir)),
    )  # fmt: skip


def build_store(base: Foundation) -> StateStore:
    """Build the state store, with images in use protected from eviction by pulls."""
    store = StateStore(base.database, clock=base.clock, jitter=base.jitter)
    store.on_change(base.metering.count)
    # Called in threads: the state is immutable.
    base.images.protect(lambda: images_in_use(store.state.vms.values(), store.state.rollouts.values()))
    return store


def build_engine(base: Foundation, store: StateStore) -> Engine:
    """Build the engine: the parts first, then those that use them."""
    config, clock, awake = base.config, base.clock, asyncio.Event()
    observer = Observer(base.hypervisor, base.images, base.measure_disk)
    history, results, queue = History(store, base.database), ProbeResults(), LeaseQueue()
    evidence = Evidence(
        config.data_dir / "evidence", config.evidence.max_mib * 2**20, config.evidence.max_vm_mib * 2**20,
        events=history.of_vm, probes=results.recent,
    )  # fmt: skip
    context = EffectContext(base.hypervisor, base.images, store, evidence)
    executor = Executor(partial(perform, context, observer.observe_storage), awake.set)
    assignments = Assignments(store, source=config.assignment.source, file=config.assignment_path, on_change=awake.set)
    updates = VmUpdates(store, wake=awake.set)
    builder = WorldBuilder(
        store, queue, executor, updates, observer, base.hypervisor.capabilities,
        limits=lambda: base.settings.limits, resolve_period_s=config.images.resolve_period_s,
        pools=lambda: assignments.held.pools, jitter=base.jitter, clock=clock,
    )  # fmt: skip
    desk = LeaseDesk(
        store, queue, builder.world,
        new_id=lambda: str(ULID()).lower(), on_refused=base.metering.count_refusal, wake=awake.set,
    )  # fmt: skip

    def move_moments(delta_s: float) -> None:
        builder.began_s += delta_s
        queue.move_moments(delta_s)

    clock_follower = ClockFollower(store, clock, boot_id(), move_moments)
    probe_runner = ProbeRunner(base.hypervisor, base.http, clock=clock)
    prober = Prober(probe_runner, updates, results, on_result=base.metering.count_probe, clock=clock)

    def after_pass(world: World) -> None:
        prober.sync(world.vms, world.pool_of, world.busy)
        base.board.post([assignments.condition(world.now_s)])

    return Engine(
        Parts(
            store=store, history=history, evidence=evidence, hypervisor=base.hypervisor,
            guests=Guests(base.hypervisor), observer=observer, assignments=assignments, leases=desk,
            operations=OperatorCommands(store, desk, wake=awake.set), executor=executor, board=base.board,
            prober=prober, probe_results=results, updates=updates,
            reconciler=Reconciler(
                store, executor, observer, base.board, builder, clock_follower, after_pass=after_pass, awake=awake
            ),
            clock_follower=clock_follower, view=builder, awake=awake,
            host=HostReader(
                store, builder, base.board, observer, results, base.images, base.identity, lambda: base.vitals.latest
            ),
        )
    )  # fmt: skip


def api_parts(engine: Engine) -> EngineParts:
    """Return the parts of an engine that the API uses."""
    parts = engine.parts
    return EngineParts(
        leases=parts.leases, history=parts.history, evidence=parts.evidence, operations=parts.operations,
        assignments=parts.assignments, vms=parts.updates, guests=parts.guests, host=parts.host, health=engine,
    )  # fmt: skip


def build_api(base: Foundation, engine: Engine, limiter: RateLimiter) -> Server:
    """Build the API server."""
    config = base.config
    authenticator = TokenAuthenticator(tokens_path(config.data_dir), anonymous=_ANONYMOUS[config.api.auth])
    return Server(
        build_application(api_parts(engine), base.metrics, authenticator, limiter),
        host=config.api.host, port=config.api.port, socket_path=config.socket_path,
        port_file=config.data_dir / "api.port", tls=config.api.tls,
    )  # fmt: skip


def _build_host_monitor(base: Foundation, store: StateStore) -> HostMonitor:
    account, hypervisor = current_user(), base.identity.hypervisor
    doctor = build_doctor(lambda: build_subject(base.config, account, hypervisor, in_agent=True), base.runner)
    assertion = (
        PowerAssertion(base.runner, lambda: any(vm.is_alive for vm in store.state.vms.values()))
        if sys.platform == "darwin"
        else None
    )
    return HostMonitor(
        doctor, base.board.post,
        period_s=base.config.host.doctor_period_s, vitals=base.vitals, power_assertion=assertion,
    )  # fmt: skip


def _appliers(
    settings: LiveSettings, images: Images, limiter: RateLimiter, monitor: HostMonitor
) -> Mapping[str, Callable[[Config], None]]:
    """Return the function that applies each configuration key that needs no restart."""

    def apply_limits(config: Config) -> None:
        settings.limits = host_limits(config.host)

    def apply_bandwidth(config: Config) -> None:
        cap = config.images.bandwidth_mib_per_s
        images.limit_bandwidth(None if cap is None else cap * 2**20)

    def apply_rate(config: Config) -> None:
        limiter.rate = Rate(config.api.rate_per_s, config.api.rate_burst)

    def apply_period(config: Config) -> None:
        monitor.set_period(config.host.doctor_period_s)

    rate = ("api.rate_per_s", "api.rate_burst")
    limits = ("host.slots", "host.cpus", "host.memory_mib", "host.memory_reserve_mib")
    return {
        **dict.fromkeys(limits, apply_limits),
        **dict.fromkeys(rate, apply_rate),
        "host.doctor_period_s": apply_period,
        "images.bandwidth_mib_per_s": apply_bandwidth,
    }
