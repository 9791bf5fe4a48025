"""A Hearth host for scripts and tests: its files, the real daemon as a process, and a client of its API.

All files are in one directory, so several hosts can run at the same time and `close` removes everything.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import sys
import tomllib
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from scripts.lib.backend import QemuBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import psutil

    from scripts.lib.backend import Backend

Document = dict[str, Any]

POLL_S: Final = 0.05
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 30.0

CORDONED: Final = frozenset({"schedulable"})
"""The readiness check that fails on a cordoned host."""

PROBES: Final = """
[[pools.{pool}.probes]]
kind = "agent"
period_s = 1
timeout_s = 2
failures = 3

[[pools.{pool}.probes]]
kind = "http"
port = 8080
period_s = 1
timeout_s = 2
failures = 3
"""


class Host:
    """One host in `directory`. Call `configure`, `assign` and `start`, then the API; `close` at the end."""

    def __init__(self, directory: Path, backend: Backend | None = None) -> None:
        self.directory = directory
        self.backend = backend or QemuBackend(directory)
        self.data_dir = directory / "data"
        self.config = directory / "hearth.toml"
        self.assignment = directory / "assignment.toml"
        self._process: asyncio.subprocess.Process | None = None
        self._http: aiohttp.ClientSession | None = None

    @property
    def pid(self) -> int:
        """Return the process id of the running agent."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Return whether the agent was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    @property
    def http(self) -> aiohttp.ClientSession:
        """Return a session that sends all requests to the agent's Unix socket."""
        if self._http is None or self._http.closed:
            socket = self.socket
            self._http = aiohttp.ClientSession("http://hearth", connector=aiohttp.UnixConnector(str(socket)))
        return self._http

    @property
    def socket(self) -> Path:
        """Return the configured path of the agent's Unix socket."""
        api = tomllib.loads(self.config.read_text()).get("api", {})
        return self.directory / str(api.get("socket", self.data_dir / "hearth.sock"))

    def configure(self, text: str = "", *, slots: int = 2) -> None:
        """Write the configuration: small limits and a free port, then `text`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.config.write_text(
            f'data_dir = "data"\n[host]\nslots = {slots}\nmemory_reserve_mib = 256\ndisk_reserve_mib = 64\n'
            f"[api]\nport = 0\n{text}\n"
        )
        if not self.assignment.exists():
            self.assignment.write_text("")

    def assign(
        self, pool: str, image: str, *, warm: int = 2, soak_s: float = 0, text: str = "", probes: str = PROBES
    ) -> None:
        """Assign one pool of small guests. Replaces the file atomically. By default new versions do not soak."""
        document = (
            f'[pools.{pool}]\nimage = "{image}"\nwarm = {warm}\ncpus = 1\nmemory_mib = 256\nports = [22, 8080]\n'
            f"stop_grace_s = 0\nstartup_deadline_s = 120\nsoak_s = {soak_s}\n{text}\n{probes.format(pool=pool)}"
        )
        self.write_assignment(document)

    def unassign(self) -> None:
        """Assign nothing."""
        self.write_assignment("")

    def write_assignment(self, text: str) -> None:
        """Replace the assignment file atomically."""
        aside = self.assignment.with_suffix(".new")
        aside.write_text(text)
        aside.rename(self.assignment)

    async def run_hearth(self, *arguments: str, check: bool = True, timeout_s: float = 300) -> tuple[int, str, str]:
        """Run the `hearth` command with this host's configuration; return exit code, stdout and stderr."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "agent", *arguments,
            env={**os.environ, "HEARTH_CONFIG": str(self.config)},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            out, err = await asyncio.wait_for(process.communicate(), timeout_s)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        code = process.returncode or 0
        if check and code:
            raise RuntimeError(f"hearth {' '.join(arguments)} ended with {code}: {err.decode()}")
        return code, out.decode(), err.decode()

    async def start(self, *, env: Mapping[str, str] | None = None, excused: frozenset[str] = CORDONED) -> None:
        """Start the agent and wait until it is ready. Ignores the readiness checks in `excused`."""
        with (self.directory / "agent.out").open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "agent", "run", "--config", str(self.config),
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, **(env or {})},
                start_new_session=True,  # a Ctrl-C in the terminal must not reach the agent
            )  # fmt: skip
        await self.wait_until_ready(excused=excused)

    async def wait_until_ready(self, *, excused: frozenset[str] = CORDONED, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until the agent is ready, except the checks in `excused`. Raises `RuntimeError` when it has ended."""
        async with asyncio.timeout(timeout_s):
            while True:
                assert self._process is not None
                if self._process.returncode is not None:
                    raise RuntimeError(f"the agent ended with {self._process.returncode}: {self.output()}")
                try:
                    async with self.http.get("/readyz") as response:
                        checks = (await response.json())["checks"]
                    if all(check["ok"] or check["name"] in excused for check in checks):
                        return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(POLL_S)

    def output(self) -> str:
        """Return the agent's stdout and stderr."""
        return (self.directory / "agent.out").read_text()

    async def stop(self) -> int:
        """Stop the agent with SIGTERM; return its exit code. Its VMs continue to run."""
        return await self._stop_process(signal.SIGTERM)

    async def kill(self) -> None:
        """Kill the agent with SIGKILL."""
        await self._stop_process(signal.SIGKILL)

    async def wait(self) -> int:
        """Wait until the agent ends; return its exit code."""
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)

    async def _stop_process(self, number: signal.Signals) -> int:
        assert self._process is not None
        await self._close_http()
        self._process.send_signal(number)
        return await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)

    async def get(self, path: str) -> Document:
        """Return the JSON document at a path of the API."""
        return await self.call("GET", path)

    async def call(self, method: str, path: str, body: object = None) -> Document:
        """Call the API; return the response's document. Raises `RuntimeError` with the problem for an error status."""
        async with self.http.request(method, path, json=body) as response:
            text = await response.text()
            if response.status >= 400:
                raise RuntimeError(f"{method} {path}: {response.status} {text}")
            document: Document = json.loads(text) if text else {}
            return document

    async def wait_until(
        self, predicate: Callable[[Document, list[Document]], bool], *, timeout_s: float = 120
    ) -> Document:
        """Wait until `predicate(host, vms)` is true; return that host document."""
        host: Document = {}
        vms: list[Document] = []
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    host, vms = await self.get("/v1/host"), (await self.get("/v1/vms"))["vms"]
                    if predicate(host, vms):
                        return host
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            seen = [(vm["name"], vm["state"]) for vm in vms]
            raise TimeoutError(f"not within {timeout_s} s; VMs: {seen}, pools: {host.get('pools')}") from None

    async def wait_until_warm(
        self, count: int, *, without: str = "", image: str = "", timeout_s: float = 120
    ) -> list[str]:
        """Wait until exactly `count` VMs exist, all ready, none named `without`, all of `image` if given."""

        def warm(_: Document, vms: list[Document]) -> bool:
            good = [vm for vm in vms if vm["state"] == "ready" and vm["name"] != without]
            return len(vms) == len(good) == count and all(vm["image"] == (image or vm["image"]) for vm in vms)

        await self.wait_until(warm, timeout_s=timeout_s)
        return [vm["name"] for vm in (await self.get("/v1/vms"))["vms"]]

    async def metric(self, name: str) -> float:
        """Return the value of a metric without labels."""
        async with self.http.get("/metrics") as response:
            lines = (await response.text()).splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))

    def read_log(self) -> list[Document]:
        """Return the lines of the agent's log."""
        return [json.loads(line) for line in (self.data_dir / "logs" / "hearth.log").read_text().splitlines()]

    def vm_pid(self, name: str) -> int:
        """Return the process id of a VM. Raises `LookupError` unless it has exactly one process."""
        found = self.vm_pids().get(name, [])
        if len(found) != 1:
            raise LookupError(f"{name} has {len(found)} processes")
        return found[0]

    def vm_pids(self) -> dict[str, list[int]]:
        """Return the process ids of every VM of this host by VM name, known to the agent or not."""
        return {name: [process.pid for process in found] for name, found in self.backend.processes().items()}

    def vm_processes(self) -> list[psutil.Process]:
        """Return the processes of VMs of this host, known to the agent or not."""
        return [process for found in self.backend.processes().values() for process in found]

    def list_leftovers(self) -> list[str]:
        """Return everything that is left of VMs: processes, files, rows of the journal."""
        processes = [f"process {process.pid}" for process in self.vm_processes()]
        return (
            processes
            + self.backend.list_leftovers()
            + [f"row {row}" for row in self.journal_keys("vms") + self.journal_keys("leases")]
        )

    def journal_keys(self, table: str) -> list[str]:
        """Return the keys of a table of the journal."""
        path = self.data_dir / "journal.sqlite"
        if not path.exists():
            return []
        with closing(sqlite3.connect(path, timeout=10)) as connection:
            return [key for (key,) in connection.execute(f"SELECT key FROM {table}")]

    async def remove_all_vms(self, *, timeout_s: float = 60) -> list[str]:
        """Unassign all pools, wait until the last VM is gone, and return what is left."""
        self.unassign()
        await self.wait_until(lambda _, vms: not vms, timeout_s=timeout_s)
        return self.list_leftovers()

    async def close(self) -> None:
        """Kill the agent and all its VMs, and remove the directory."""
        await self.kill_all()
        shutil.rmtree(self.directory, ignore_errors=True)

    async def kill_all(self) -> None:
        """Kill the agent and all its VMs. The files stay."""
        await self._close_http()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        await self.backend.close()

    async def _close_http(self) -> None:
        if self._http is not None:
            await self._http.close()
