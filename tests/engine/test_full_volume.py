"""The journal on a volume without a free block: leases and VMs can be ended, nothing else is written."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from agent.domain.model import ClockAnchor, Lease, Vm
from agent.domain.states import VmState
from agent.domain.stored_state import Changes, Drop, Put
from agent.engine.schema import WAL_BYTES, JournalError
from tests.engine.support import Clock, open_store, put, vm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small volume")


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """Mount an ext4 of 48 MiB."""
    image, mount = tmp_path / "volume.img", tmp_path / "volume"
    with image.open("wb") as file:
        file.truncate(48 << 20)
    mount.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a loop device cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def fill(path: Path) -> None:
    """Use every free byte of the volume."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
        os.fsync(file.fileno())


async def test_leases_and_vms_are_ended_on_a_full_volume(volume: Path) -> None:
    """Also many: the guest of the last one may hold the space."""
    path = volume / "journal.sqlite"
    async with open_store(path, Clock()) as store:
        for number in range(100):
            name, lease = f"v{number}", f"l{number}"
            await put(
                store,
                vm(name, VmState.LEASED, lease_id=lease),
                Lease(lease, "ci", name, "job", 60, 1000, 1060),
            )
        fill(volume / "guest-disk")
        with pytest.raises(JournalError, match="free space on its disk"):
            await put(store, vm("new"))
        assert not await store.try_writing()
        await put(store, ClockAnchor(1000.0, 1.0, "boot"))
        for number in range(100):
            name = f"v{number}"
            async with store.transaction() as transaction:
                ended = Put(vm(name, VmState.STOPPING))
                transaction.apply(Changes((Drop(Lease, f"l{number}"), ended)))
            async with store.transaction() as transaction:
                transaction.apply(Changes((Drop(Vm, name),)))
        assert not store.state.vms
        (volume / "guest-disk").unlink()
        assert await store.try_writing()
        await put(store, vm("new"))
    async with open_store(path, Clock()) as store:
        assert (set(store.state.vms), set(store.state.leases)) == ({"new"}, set())


async def test_wal_is_reserved_when_space_is_free_again(volume: Path) -> None:
    path, guest_disk = volume / "journal.sqlite", volume / "guest-disk"
    fill(guest_disk)
    os.truncate(guest_disk, guest_disk.stat().st_size - (4 << 20))
    async with open_store(path, Clock()) as store:
        assert (volume / "journal.sqlite-wal").stat().st_size < WAL_BYTES
        guest_disk.unlink()
        await store._database.trim()
        assert (volume / "journal.sqlite-wal").stat().st_size == WAL_BYTES
