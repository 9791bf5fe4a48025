"""The process of the agent: single instance, start order, signals, and a stop with a time limit.

The API listens before the engine starts, so that probes of a starting agent get "starting" and not a refused
connection. The first SIGTERM or SIGINT stops the agent in order and leaves all VMs running; a second one ends the
process immediately.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from contextlib import AsyncExitStack, contextmanager
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from agent import __version__, app
from agent.config import ConfigError, load_config
from agent.config_reload import ConfigReloader
from agent.domain.errors import HearthError
from agent.host.data_dir_lock import lock_data_directory
from agent.host.private_files import make_private
from agent.processes.resources import Outages, raise_file_limit
from agent.processes.signals import reset_inherited_signals
from agent.telemetry import log as logs
from agent.telemetry.event_loop_lag import observe_event_loop_lag
from agent.telemetry.log_file import Retention, log_path
from agent.telemetry.log_rendering import escape_unprintable
from agent.telemetry.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from agent.config import Config, LogConfig
    from agent.telemetry.log import Logs

log = structlog.get_logger()

STOP_LIMIT_S: Final = 15.0
"""Time limit for the stop. It is below ExitTimeOut, when launchd kills the agent. The journal is always consistent."""


TASK_RETRY_S: Final = 5.0
"""Delay before a task that failed is started again."""


class ExitCode(IntEnum):
    """Exit codes of `hearth run`, after sysexits(3)."""

    OK = 0
    FAILED = 1
    UNAVAILABLE = 69
    BAD_CONFIGURATION = 78
    FORCED = 130


def run(config_path: Path) -> int:
    """Run the agent until a signal stops it; return the exit code. Errors at the start go to stderr and the log."""
    reset_inherited_signals()
    try:
        config = load_config(config_path)
    except ConfigError as error:
        _print_error(error)
        return ExitCode.BAD_CONFIGURATION
    try:
        with lock_data_directory(config.data_dir), _logging(config) as handlers:
            return asyncio.run(_run(config_path, config, handlers))
    except HearthError as error:
        _print_error(error)
        return ExitCode.UNAVAILABLE


def _retention(config: LogConfig) -> Retention:
    return Retention(
        max_bytes=config.max_mib << 20,
        max_age_s=config.max_age_h * 3600,
        budget_bytes=config.budget_mib << 20,
        keep_s=config.keep_days * 86400,
    )


@contextmanager
def _logging(config: Config) -> Iterator[Logs]:
    handlers = logs.configure(
        level=config.log.level,
        path=log_path(config.data_dir),
        retention=_retention(config.log),
        terminal=sys.stderr if sys.stderr.isatty() else None,
    )
    try:
        yield handlers
    finally:
        handlers.close()


def _disable_core_files() -> None:
    """Prevent core files of the agent and of its children, because their memory contains secrets."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


async def _run(config_path: Path, config: Config, handlers: Logs) -> int:
    _disable_core_files()
    files = raise_file_limit()
    asyncio.get_running_loop().set_exception_handler(Outages().handle)
    log.info("agent-starting", version=__version__, pid=os.getpid(), data_dir=str(config.data_dir), open_files=files)
    for path, error in make_private(config.data_dir):
        log.warning("file-not-private", path=str(path), error=str(error))
    stopping, reloading = _stop_on_signals(), _reload_on_hangup()
    async with AsyncExitStack() as stack:
        try:
            built = await app.build(config, stack)
            stack.push_async_callback(built.api.close)
            await built.start()
        except HearthError as error:
            log.error("agent-cannot-start", error=str(error))  # noqa: TRY400 - the message is complete
            raise
        log.info("agent-started", port=built.api.port)
        reloader = ConfigReloader(
            config_path,
            config,
            {**built.appliers, "log.level": lambda new: handlers.set_level(new.log.level)},
            built.board,
        )
        with Watchdog(built.engine.heartbeat, limit_s=config.agent.watchdog_s, report=log_path(config.data_dir)):
            code = await _serve(built, reloader, stopping, reloading)
        log.info("agent-stopping", vms_left_running=len(built.engine.parts.store.state.vms))
        await _stop(built)
    log.info("agent-stopped")
    return code


async def _serve(built: app.App, reloader: ConfigReloader, stopping: asyncio.Event, reloading: asyncio.Event) -> int:
    """Run the engine until a signal requests the stop, or a defect ends the engine."""
    running = asyncio.create_task(built.engine.run(), name="engine")
    stop_requested = asyncio.create_task(stopping.wait(), name="signals")
    tasks: dict[str, Callable[[], Awaitable[None]]] = {
        "lag": partial(observe_event_loop_lag, built.metrics.loop_lag.observe),
        "configuration": reloader.watch,
        "reload": partial(_reload, built, reloader, reloading),
        "host": built.watch.run,
    }
    background = [asyncio.create_task(_keep_running(name, start), name=name) for name, start in tasks.items()]
    await asyncio.wait([running, stop_requested], return_when=asyncio.FIRST_COMPLETED)
    for task in (stop_requested, *background):
        task.cancel()
    if not running.done():
        running.cancel()
        await asyncio.wait([running], timeout=STOP_LIMIT_S)
        return ExitCode.OK
    log.critical("engine-ended", error=repr(running.exception()), exc_info=running.exception())
    return ExitCode.FAILED


async def _stop(built: app.App) -> None:
    try:
        async with asyncio.timeout(STOP_LIMIT_S):
            await built.engine.stop()
    except TimeoutError:
        log.error("stop-cut-short", limit_s=STOP_LIMIT_S)  # noqa: TRY400 - the traceback shows no cause


def _stop_on_signals() -> asyncio.Event:
    """Return an event that the first SIGTERM or SIGINT sets. The second signal ends the process."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        if stopping.is_set():
            os._exit(ExitCode.FORCED)
        log.info("signal-received", signal=number.name)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    return stopping


def _reload_on_hangup() -> asyncio.Event:
    """Return an event that each SIGHUP sets. Ignore the other signals that would end the process by default.

    A closed terminal sends SIGHUP, so it ends no agent.
    """
    reloading = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloading.set)
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_IGN)
    return reloading


async def _keep_running(name: str, start: Callable[[], Awaitable[None]]) -> None:
    """Run a task of the daemon, and start it again after a defect: the agent must not lose it silently."""
    while True:
        try:
            await start()
        except Exception:
            log.exception("task-failed", task=name, retry_s=TASK_RETRY_S)
        await asyncio.sleep(TASK_RETRY_S)


async def _reload(built: app.App, reloader: ConfigReloader, reloading: asyncio.Event) -> None:
    """Read the configuration and the assignment at each SIGHUP. The log opens its file again by itself."""
    while True:
        await reloading.wait()
        reloading.clear()
        log.info("reload-requested", signal="SIGHUP")
        await reloader.reload()
        await built.engine.parts.assignments.check_file()


def _print_error(error: HearthError) -> None:
    sys.stderr.write(f"hearth: {escape_unprintable(error)}\n")
