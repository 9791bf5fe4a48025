"""A full data volume under the whole agent: it reports the condition, grants no lease, and recovers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from scripts.lib.host import Host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from scripts.lib.host import Document

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small volume"),
]

VOLUME_MIB = 384


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    """A host with its data directory on a separate small volume."""
    directory = Path(tempfile.mkdtemp(prefix="hearth-test-"))
    made, volume = Host(directory), directory / "volume.img"
    made.data_dir.mkdir()
    with volume.open("wb") as file:
        file.truncate(VOLUME_MIB << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(volume)], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", str(volume), str(made.data_dir)], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a loop device cannot be mounted here: {mounted.stderr.decode().strip()}")
    made.configure()
    try:
        yield made
    finally:
        await made.kill_all()
        subprocess.run(["umount", str(made.data_dir)], check=True)
        await made.close()


def fill(ballast: Path) -> None:
    """Use every free byte of the volume."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


def problems(document: Document) -> set[str]:
    return {one["type"] for one in document["conditions"] if one["problem"]}


def whole_lines(host: Host) -> Iterator[Document]:
    """Yield the lines of the log, except one that the full disk truncated."""
    cut = 0
    for line in (host.data_dir / "logs" / "hearth.log").read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            cut += 1
    assert cut <= 1


async def test_agent_recovers_from_full_disk(host: Host, layout: dict[str, str]) -> None:
    host.assign("small", layout["1.0"], warm=1, text="use_templates = false")  # templates change the free space
    await host.start()
    (victim,) = await host.wait_until_warm(1)
    ballast = host.data_dir / "ballast"

    fill(ballast)
    code, _, err = await host.run_hearth("lease", "small", check=False)
    assert code == 1
    assert "free space on its disk" in err
    full = {"JournalWritable", "DiskPressure"}
    await host.wait_until(lambda document, _: full <= problems(document), timeout_s=30)
    assert (await host.run_hearth("status"))[0] == 0
    os.kill(host.vm_pid(victim), signal.SIGKILL)

    ballast.unlink()
    await host.wait_until(lambda document, _: not full & problems(document), timeout_s=30)
    lease = await host.call("POST", "/v1/leases", {"pool": "small", "holder": "job", "wait_s": 100})
    assert lease["vm"] != victim, "a VM that died on the full disk must not be leased"
    log = list(whole_lines(host))
    assert any(line["event"] == "log-lines-lost" for line in log), "lost log lines are counted"
    page = await host.call("GET", "/v1/events?limit=1000")  # its log line may be among the lost ones
    assert [event["cause"] for event in page["events"] if event["kind"] == "vm-failed"] == ["exited"]


async def test_agent_started_on_full_disk_adopts_and_recovers(host: Host, layout: dict[str, str]) -> None:
    host.assign("small", layout["1.0"], warm=1, text="use_templates = false")  # templates change the free space
    await host.start()
    (name,) = await host.wait_until_warm(1)
    pid = host.vm_pid(name)
    await host.kill()
    ballast = host.data_dir / "ballast"
    fill(ballast)

    await host.start(excused=frozenset({"journal"}))
    await host.wait_until(lambda document, _: "DiskPressure" in problems(document), timeout_s=60)
    await host.wait_until(lambda _, vms: [vm["state"] for vm in vms] == ["ready"])
    ballast.unlink()
    await host.wait_until_ready()
    await host.wait_until(
        lambda document, _: not {"JournalWritable", "DiskPressure"} & problems(document), timeout_s=30
    )
    assert host.vm_pid(name) == pid
    lease = await host.call("POST", "/v1/leases", {"pool": "small", "holder": "job", "wait_s": 30})
    assert lease["vm"] == name
