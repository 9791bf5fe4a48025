"""An API server on a Unix socket, in a thread, and the command line as a function and as a process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from agent.cli.interrupts import SIGNALS
from agent.cli.main import run
from agent.domain.states import VmState
from agent.telemetry.log import configure
from tests.api.conftest import run as serve
from tests.api.real_engine import RealEngine, vm

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path
    from types import FrameType, ModuleType

    from agent.api.auth import Authenticator
    from agent.config import TlsConfig

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


class Agent:
    """An API server in a thread. Use the engine only on the server's event loop, with `call`."""

    def __init__(
        self,
        folder: Path,
        engine: RealEngine,
        *,
        authenticator: Authenticator | None = None,
        tls: TlsConfig | None = None,
    ) -> None:
        self.port = 0
        self._authenticator, self._tls = authenticator, tls
        self.engine = engine
        self.socket = folder / "hearth.sock"
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run)
        self._logs = configure(path=folder / "server.log", terminal=None)

    def __enter__(self) -> Agent:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._logs.close()
        assert not self._thread.is_alive()

    def call(self, work: Callable[[RealEngine], Awaitable[_Result]]) -> _Result:
        """Run a coroutine function on the server's event loop and return its result."""

        async def run_work() -> _Result:
            return await work(self.engine)

        return asyncio.run_coroutine_threadsafe(run_work(), self._loop).result(10)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        async with serve(self.engine, self._folder, authenticator=self._authenticator, tls=self._tls) as running:
            self.port = running.server.port
            self._ready.set()
            await self._stop.wait()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    engine = RealEngine(vm("hearth-small-1", age_s=90), vm("hearth-small-2", VmState.STARTING, age_s=30))
    with Agent(tmp_path, engine) as running:
        yield running


@pytest.fixture
def hearth(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Return a function that runs the command line in this process."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: object) -> Ended:
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    return call


_started: list[subprocess.Popen[Any]] = []


@pytest.fixture(autouse=True)
def _kill_started_processes() -> Iterator[None]:
    """Kill the process groups of `start` that a failed test left behind."""
    yield
    while _started:
        process = _started.pop()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture(autouse=True)
def _default_interrupts() -> Iterator[None]:
    """Give this process the handlers of a process that a shell started in the foreground."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def start(*arguments: object, **options: Any) -> subprocess.Popen[Any]:
    """Start the command line as a process, in its own process group. The test's teardown kills the group.

    `options` are those of `subprocess.Popen`. By default, stdout and stderr are pipes with text.
    """
    command = [sys.executable, "-m", "agent", *(str(argument) for argument in arguments)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "80"}
    defaults: dict[str, Any] = {
        "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment, "process_group": 0,
    }  # fmt: skip
    process = subprocess.Popen(command, **{**defaults, **options})
    _started.append(process)
    return process


class InterruptAt:
    """A trace function that raises SIGINT when the given number of lines of the modules have run."""

    def __init__(self, moment: int, *modules: ModuleType) -> None:
        self.moment = moment
        self.passed = 0
        self._watched = {module.__file__ for module in modules}

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in self._watched:
            return None
        if event == "line":
            self.passed += 1
            if self.passed == self.moment:
                signal.raise_signal(signal.SIGINT)
        return self
