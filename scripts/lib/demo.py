"""Demo of a host with two warm VMs, or an unattended tour (`--once`).

`scripts/demo` runs it after the setup. Progress goes to stderr, the figures of `--once` go to stdout as one line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from scripts.lib.anka_backend import AnkaBackend  # noqa: E402 - needs the sys.path above
from scripts.lib.backend import Backend, QemuBackend  # noqa: E402
from scripts.lib.host import Host  # noqa: E402
from scripts.lib.tart_backend import TartBackend  # noqa: E402

POOL: Final = "small"

STOP_S: Final = 12.0
"""Time for the end in order after Ctrl-C. What is left then is killed."""


def show(text: str) -> None:
    """Print one line of progress on stderr, with the seconds since the start."""
    sys.stderr.write(f"[{time.monotonic() - _STARTED_S:6.1f} s] {text}\n")
    sys.stderr.flush()


_STARTED_S: Final = time.monotonic()


BACKENDS: Final[dict[str, Callable[[Path], Backend]]] = {"qemu": QemuBackend, "tart": TartBackend, "anka": AnkaBackend}


async def prepare(host: Host, versions: tuple[str, ...]) -> dict[str, str]:
    """Configure a host, make images for it, and return their references by version."""
    show(f"making guest images {', '.join(versions)}: up to a minute the first time")
    references = await host.backend.make_images(host, versions)
    for version, reference in references.items():
        show(f"image version {version} is available from {reference}")
    return references


class Tour:
    """The tour, step by step. Each step checks its result and measures its duration."""

    def __init__(self, host: Host, references: dict[str, str]) -> None:
        self.host = host
        self.references = references
        self.figures: dict[str, Any] = {}

    async def run(self) -> None:
        """Run every step in order. Raises at the first that fails."""
        await self.host.start()
        show("the agent runs; no pool is assigned yet")
        await self.fill()
        await self.lease()
        await self.kill_a_vm()
        await self.hang_a_vm()
        await self.roll()
        await self.crash_the_agent()
        await self.unassign()

    async def fill(self) -> None:
        """Assign a pool. The agent pulls its image, boots one VM as a canary, then the others."""
        began_s = time.monotonic()
        self.host.assign(POOL, self.references["1.0"])
        await self.host.wait_until(lambda host, _: any(image["state"] == "present" for image in host["images"]))
        self._took("pull_s", began_s)
        await self.host.wait_until(lambda _, vms: any(vm["state"] == "ready" for vm in vms))
        self._took("first_ready_s", began_s)
        await self.host.wait_until_warm(2)
        slots = (await self.host.get("/v1/host"))["slots"]
        show(f"two VMs are ready; capacity from the API: slots {slots}")

    async def lease(self) -> None:
        """Lease a VM as a CI job would, use it and release it. The agent replaces it."""
        began_s = time.monotonic()
        lease = await self.host.call("POST", "/v1/leases", {"pool": POOL, "holder": "demo", "wait_s": 0})
        self.figures["lease_ms"] = round((time.monotonic() - began_s) * 1000, 1)
        served = await self.fetch_version(lease)
        show(f"leased {lease['vm']} in {self.figures['lease_ms']} ms; its guest serves version {served}")
        assert served == "1.0", served
        await self.host.call("DELETE", f"/v1/leases/{lease['id']}")
        await self.host.wait_until_warm(2, without=lease["vm"])
        show("released: that VM is gone and a new one is ready")

    async def kill_a_vm(self) -> None:
        """Kill a VM's process. The agent notices it immediately and replaces the VM."""
        victim = (await self.host.wait_until_warm(2))[0]
        began_s = time.monotonic()
        os.kill(self.host.vm_pid(victim), signal.SIGKILL)
        await self.host.wait_until_warm(2, without=victim)
        self._took("replaced_after_kill_s", began_s)

    async def hang_a_vm(self) -> None:
        """Make a VM hang. Its probes fail and the agent replaces it."""
        victim = (await self.host.wait_until_warm(2))[0]
        began_s = time.monotonic()
        self.host.backend.hang(victim)
        await self.host.wait_until_warm(2, without=victim)
        self._took("replaced_after_hang_s", began_s)

    async def roll(self) -> None:
        """Assign a new version. The agent tests it on one VM and rolls it through the pool."""
        old = (await self.host.get("/v1/vms"))["vms"][0]["image"]
        began_s = time.monotonic()
        self.host.assign(POOL, self.references["2.0"])
        await self.host.wait_until(
            lambda _, vms: len(vms) == 2 and all(vm["state"] == "ready" and vm["image"] != old for vm in vms)
        )
        self._took("rolled_s", began_s)
        lease = await self.host.call("POST", "/v1/leases", {"pool": POOL, "holder": "demo", "wait_s": 0})
        served = await self.fetch_version(lease)
        assert served == "2.0", served
        await self.host.call("DELETE", f"/v1/leases/{lease['id']}")
        await self.host.wait_until_warm(2, without=lease["vm"])
        show(f"the new version is rolled through the pool; a guest serves version {served}")

    async def crash_the_agent(self) -> None:
        """Kill the agent with SIGKILL. The next agent adopts every VM with its process."""
        before = {name: self.host.vm_pid(name) for name in await self.host.wait_until_warm(2)}
        await self.host.kill()
        await self.host.start()
        after = {name: self.host.vm_pid(name) for name in await self.host.wait_until_warm(2)}
        adopted = int(await self.host.metric("hearth_vms_adopted_total"))
        self.figures["adopted"] = adopted if before == after else 0
        assert before == after, (before, after)
        show(f"the agent was killed with -9 and started again: {adopted} VMs adopted, same processes")

    async def unassign(self) -> None:
        """Unassign the pool and check that nothing is left of any VM."""
        left = await self.host.remove_all_vms()
        self.figures["leaked"] = len(left)
        code = await self.host.stop()
        assert not left, left
        assert code == 0, code
        show("unassigned: no process, file or row of any VM is left; the agent stopped cleanly")

    async def fetch_version(self, lease: dict[str, Any]) -> str:
        """Return what a leased guest serves on its port 8080."""
        port = lease["address"]["ports"]["8080"]
        timeout = aiohttp.ClientTimeout(total=10)
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.get(f"http://{lease['address']['host']}:{port}/") as response,
        ):
            return (await response.text()).strip()

    def _took(self, figure: str, began_s: float) -> None:
        self.figures[figure] = round(time.monotonic() - began_s, 2)
        show(f"{figure}: {self.figures[figure]}")


async def once(host: Host) -> int:
    """Run the tour; print its figures as one JSON line and return the exit code."""
    tour = Tour(host, {})
    try:
        tour.references = await prepare(host, ("1.0", "2.0"))
        await tour.run()
        tour.figures["ok"] = True
    except (AssertionError, RuntimeError, LookupError, TimeoutError, OSError, aiohttp.ClientError) as error:
        show(f"failed: {type(error).__name__}: {error}")
        tour.figures["ok"] = False
    finally:
        await host.close()
    sys.stdout.write(json.dumps(tour.figures) + "\n")
    return 0 if tour.figures["ok"] else 1


async def watch(host: Host) -> int:
    """Keep two VMs warm and show the live status until Ctrl-C; then remove everything."""
    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
    try:
        references = await prepare(host, ("1.0",))
        host.assign(POOL, references["1.0"])
        await host.start()
        hearth = Path(sys.executable).with_name("hearth")
        show(f"status page: http://127.0.0.1:{(host.data_dir / 'api.port').read_text().strip()}/")
        show(f"try in another terminal: HEARTH_CONFIG={host.config} {hearth} lease {POOL}")
        watching = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "agent", "status", "--watch", "--config", str(host.config), start_new_session=True
        )
        ended = asyncio.create_task(watching.wait())
        stopped = asyncio.create_task(interrupted.wait())
        await asyncio.wait([ended, stopped], return_when=asyncio.FIRST_COMPLETED)
        if watching.returncode is None:
            watching.send_signal(signal.SIGINT)
            await asyncio.wait_for(ended, 10)
        show("stopping: ending the leases, tearing the VMs down")
        left = await remove_leases_with_vms(host)
        show(f"killing what is left after {STOP_S:g} s: {left}" if left else "nothing is left")
        return 0
    finally:
        await host.close()


async def remove_leases_with_vms(host: Host) -> list[str]:
    """End every lease and VM, and stop the agent. Return what is left after `STOP_S`; `Host.close` kills it."""
    try:
        async with asyncio.timeout(STOP_S):
            host.unassign()
            for vm in (await host.get("/v1/vms"))["vms"]:
                if vm["lease"]:
                    await host.call("DELETE", f"/v1/leases/{vm['lease']['id']}")
            left = await host.remove_all_vms()
            await host.stop()
    except (TimeoutError, RuntimeError, aiohttp.ClientError):
        return host.list_leftovers()
    return left


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="run the tour unattended and print its figures")
    backends = "qemu: real VMs; tart, anka: a simulated Mac (default qemu)"
    parser.add_argument("--hypervisor", choices=BACKENDS, default="qemu", help=backends)
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="hearth-demo-"))
    host = Host(directory, BACKENDS[arguments.hypervisor](directory))
    return asyncio.run((once if arguments.once else watch)(host))


if __name__ == "__main__":
    sys.exit(main())
