"""The demonstration: a host with two warm VMs to look at, or the whole tour unattended (`--once`).

Run by `scripts/demo`, which sets up first. The story goes to stderr, the figures of `--once` to stdout as one line.
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

from scripts.lib.anka_backend import AnkaBackend  # noqa: E402 - needs the path above
from scripts.lib.backend import Backend, QemuBackend  # noqa: E402
from scripts.lib.host import Host  # noqa: E402
from scripts.lib.tart_backend import TartBackend  # noqa: E402

POOL: Final = "small"


def tell(text: str) -> None:
    """Tell the story, with the seconds since the start."""
    sys.stderr.write(f"[{time.monotonic() - _STARTED_S:6.1f} s] {text}\n")
    sys.stderr.flush()


_STARTED_S: Final = time.monotonic()


BACKENDS: Final[dict[str, Callable[[Path], Backend]]] = {"qemu": QemuBackend, "tart": TartBackend, "anka": AnkaBackend}


async def prepare(host: Host, versions: tuple[str, ...]) -> dict[str, str]:
    """Configure a host, make images for it, and return their references by version."""
    references = await host.backend.make_images(host, versions)
    for version, reference in references.items():
        tell(f"image version {version} can be pulled from {reference}")
    return references


class Tour:
    """The main job, step by step; each step proves what it tells and takes its time."""

    def __init__(self, host: Host, references: dict[str, str]) -> None:
        self.host = host
        self.references = references
        self.figures: dict[str, Any] = {}

    async def run(self) -> None:
        """Take every step in order. Raises at the first that does not hold."""
        await self.host.start()
        tell("the agent runs; it has nothing to do yet")
        await self.fill()
        await self.lease()
        await self.kill_a_vm()
        await self.hang_a_vm()
        await self.roll()
        await self.crash_the_agent()
        await self.leave()

    async def fill(self) -> None:
        """Assign a pool: its image is pulled, one VM proves it, the rest follow."""
        began_s = time.monotonic()
        self.host.assign(POOL, self.references["1.0"])
        await self.host.wait_until(lambda host, _: any(image["state"] == "here" for image in host["images"]))
        self._took("pull_s", began_s)
        await self.host.wait_until(lambda _, vms: any(vm["state"] == "ready" for vm in vms))
        self._took("first_ready_s", began_s)
        await self.host.wait_until_warm(2)
        slots = (await self.host.get("/v1/host"))["slots"]
        tell(f"two VMs are warm and proven healthy; capacity over HTTP: slots {slots}")

    async def lease(self) -> None:
        """Lease a VM as a CI job would, use it, release it; a fresh one takes its place."""
        began_s = time.monotonic()
        lease = await self.host.call("POST", "/v1/leases", {"pool": POOL, "holder": "demo", "wait_s": 0})
        self.figures["lease_ms"] = round((time.monotonic() - began_s) * 1000, 1)
        served = await self.ask_guest(lease)
        tell(f"leased {lease['vm']} in {self.figures['lease_ms']} ms; its guest serves version {served}")
        assert served == "1.0", served
        await self.host.call("DELETE", f"/v1/leases/{lease['id']}")
        await self.host.wait_until_warm(2, without=lease["vm"])
        tell("released: that VM is gone and a fresh one is warm")

    async def kill_a_vm(self) -> None:
        """Kill a VM's process; it is noticed at once and replaced."""
        victim = (await self.host.wait_until_warm(2))[0]
        began_s = time.monotonic()
        os.kill(self.host.vm_pid(victim), signal.SIGKILL)
        await self.host.wait_until_warm(2, without=victim)
        self._took("replaced_after_kill_s", began_s)

    async def hang_a_vm(self) -> None:
        """Let a VM hang without its process ending; its probes fail and it is replaced."""
        victim = (await self.host.wait_until_warm(2))[0]
        began_s = time.monotonic()
        self.host.backend.hang(victim)
        await self.host.wait_until_warm(2, without=victim)
        self._took("replaced_after_hang_s", began_s)

    async def roll(self) -> None:
        """Assign a new version; it is proven on one VM and rolled through the pool."""
        old = (await self.host.get("/v1/vms"))["vms"][0]["image"]
        began_s = time.monotonic()
        self.host.assign(POOL, self.references["2.0"])
        await self.host.wait_until(
            lambda _, vms: len(vms) == 2 and all(vm["state"] == "ready" and vm["image"] != old for vm in vms)
        )
        self._took("rolled_s", began_s)
        lease = await self.host.call("POST", "/v1/leases", {"pool": POOL, "holder": "demo", "wait_s": 0})
        served = await self.ask_guest(lease)
        assert served == "2.0", served
        await self.host.call("DELETE", f"/v1/leases/{lease['id']}")
        await self.host.wait_until_warm(2, without=lease["vm"])
        tell(f"the new version is rolled through the pool; a guest serves version {served}")

    async def crash_the_agent(self) -> None:
        """Kill the agent with -9; the next one adopts every VM, process by process."""
        before = {name: self.host.vm_pid(name) for name in await self.host.wait_until_warm(2)}
        await self.host.kill()
        await self.host.start()
        after = {name: self.host.vm_pid(name) for name in await self.host.wait_until_warm(2)}
        adopted = int(await self.host.metric("hearth_vms_adopted_total"))
        self.figures["adopted"] = adopted if before == after else 0
        assert before == after, (before, after)
        tell(f"the agent was killed with -9 and started again: {adopted} VMs adopted, same processes")

    async def leave(self) -> None:
        """Unassign the pool; nothing is left of any VM."""
        left = await self.host.remove_all_vms()
        self.figures["leaked"] = len(left)
        code = await self.host.stop()
        assert not left, left
        assert code == 0, code
        tell("unassigned: no process, file or row is left of any VM; the agent stopped cleanly")

    async def ask_guest(self, lease: dict[str, Any]) -> str:
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
        tell(f"{figure}: {self.figures[figure]}")


async def once(host: Host) -> int:
    """Take the tour; print its figures as one JSON line and return the exit code."""
    tour = Tour(host, {})
    try:
        tour.references = await prepare(host, ("1.0", "2.0"))
        await tour.run()
        tour.figures["ok"] = True
    except (AssertionError, RuntimeError, LookupError, TimeoutError, OSError, aiohttp.ClientError) as error:
        tell(f"failed: {type(error).__name__}: {error}")
        tour.figures["ok"] = False
    finally:
        await host.close()
    sys.stdout.write(json.dumps(tour.figures) + "\n")
    return 0 if tour.figures["ok"] else 1


async def watch(host: Host) -> int:
    """Keep two VMs warm and show the live status until Ctrl-C; then leave nothing behind."""
    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
    try:
        references = await prepare(host, ("1.0",))
        host.assign(POOL, references["1.0"])
        await host.start()
        tell(f"try in another terminal: HEARTH_CONFIG={host.config} hearth lease {POOL}")
        watching = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "agent", "status", "--watch", "--config", str(host.config), start_new_session=True
        )
        ended = asyncio.create_task(watching.wait())
        asked = asyncio.create_task(interrupted.wait())
        await asyncio.wait([ended, asked], return_when=asyncio.FIRST_COMPLETED)
        if watching.returncode is None:
            watching.send_signal(signal.SIGINT)
            await asyncio.wait_for(ended, 10)
        tell("stopping: tearing the VMs down")
        left = await host.remove_all_vms()
        code = await host.stop()
        tell("nothing is left behind" if not left else f"left behind: {left}")
        return code if not left else 1
    finally:
        await host.close()


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="take the whole tour unattended and print its figures")
    what = "real VMs of QEMU, or a simulated Mac with Tart or Anka (default qemu)"
    parser.add_argument("--hypervisor", choices=BACKENDS, default="qemu", help=what)
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="hearth-demo-"))
    host = Host(directory, BACKENDS[arguments.hypervisor](directory))
    return asyncio.run((once if arguments.once else watch)(host))


if __name__ == "__main__":
    sys.exit(main())
