"""Images pulled to a Tart home. Their files must match those of Tart itself (facts of Tart's on-disk layout)."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from agent.images.errors import BadReferenceError, StoreError
from agent.images.locks import locked
from agent.images.reference import parse_reference
from agent.images.tarthome import TartHome
from tests.images.disks import sha256_of
from tests.images.faulty_registry import FaultyRegistry, run_faulty
from tests.images.tartlike import write_tart_layout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.images.conftest import MakeService


@pytest.fixture
async def registry(tmp_path: Path, disk: Path) -> AsyncIterator[FaultyRegistry]:
    write_tart_layout(tmp_path / "layout", disk, chunk_bytes=4 << 20)
    served = FaultyRegistry()
    served.load(tmp_path / "layout")
    async with run_faulty(served):
        yield served


def tree(folder: Path) -> list[str]:
    """Return every path below a folder, links with their targets."""
    return sorted(
        f"{path.relative_to(folder)}{f' -> {path.readlink()}' if path.is_symlink() else ''}"
        for path in folder.rglob("*")
    )


async def test_files_match_those_of_tart(
    registry: FaultyRegistry, make_service: MakeService, tmp_path: Path, disk: Path
) -> None:
    home = tmp_path / "tart"
    images = await make_service(registry.host, store=TartHome(home))
    reference = registry.reference()
    digest = await images.resolve(reference)
    await images.pull(reference, digest)

    host = registry.host.replace(":", "%3A")
    repository = home / "cache" / "OCIs" / host / "tests" / "image"
    assert tree(home / "cache" / "OCIs") == sorted(
        [
            host,
            f"{host}/tests",
            f"{host}/tests/image",
            f"{host}/tests/image/{digest}",
            f"{host}/tests/image/v1 -> {repository / digest}",
            *(
                f"{host}/tests/image/{digest}/{name}"
                for name in (".explicitly-pulled", "config.json", "disk.img", "manifest.json", "nvram.bin")
            ),
        ]
    )
    entry = repository / digest
    assert f"sha256:{hashlib.sha256((entry / 'manifest.json').read_bytes()).hexdigest()}" == digest
    assert (entry / "manifest.json").read_bytes() == registry.manifests[digest]
    assert sha256_of(entry / "disk.img") == sha256_of(disk)
    assert (entry / ".explicitly-pulled").stat().st_size == 0
    assert (entry / "config.json").stat().st_mode & 0o200
    assert sorted(path.name for path in (home / "cache").iterdir()) == [".hearth", "OCIs", "content"]
    assert list((home / "cache" / ".hearth" / "staging").iterdir()) == []
    assert not (home / "tmp").exists()
    (image,) = await images.list()
    assert (image.digest, image.references) == (digest, (reference,))
    assert await images.find(reference) == digest
    assert (await images.local(digest)).directory == entry


async def test_moved_tag_moves_the_link_and_keeps_the_old_version(
    registry: FaultyRegistry, make_service: MakeService, tmp_path: Path
) -> None:
    images = await make_service(registry.host, store=TartHome(tmp_path / "tart"))
    first = await images.resolve(registry.reference())
    await images.pull(registry.reference(), first)
    other = registry.manifests[first] + b"\n"
    second = f"sha256:{hashlib.sha256(other).hexdigest()}"
    registry.manifests |= {second: other, "v1": other}
    assert await images.resolve(registry.reference()) == second
    await images.pull(registry.reference(), second)
    assert await images.find(registry.reference()) == second
    assert {image.digest for image in await images.list()} == {first, second}
    assert await images.find(f"{registry.host}/tests/image@{first}") == first


async def test_version_of_two_repositories_shares_its_disk(
    registry: FaultyRegistry, make_service: MakeService, tmp_path: Path
) -> None:
    home = tmp_path / "tart"
    images = await make_service(registry.host, store=TartHome(home))
    digest = await images.resolve(registry.reference())
    await images.pull(registry.reference(), digest)
    asked = len(registry.seen)
    await images.pull(f"{registry.host}/tests/copy:v7", digest)
    assert len(registry.seen) == asked
    folder = home / "cache" / "OCIs" / registry.host.replace(":", "%3A") / "tests"
    one, two = (folder / name / digest for name in ("image", "copy"))
    assert (one / "disk.img").samefile(two / "disk.img")
    assert not (one / "config.json").samefile(two / "config.json")
    await images.remove(digest)
    assert tree(folder) == ["copy", "image"]


async def test_publish_waits_for_the_lock_of_tart(
    registry: FaultyRegistry, make_service: MakeService, tmp_path: Path
) -> None:
    store = TartHome(tmp_path / "tart")
    images = await make_service(registry.host, store=store)
    host = tmp_path / "tart" / "cache" / "OCIs" / registry.host.replace(":", "%3A")
    host.mkdir(parents=True)
    digest = await images.resolve(registry.reference())
    with locked(host):  # as `tart pull` does
        pulling = asyncio.create_task(images.pull(registry.reference(), digest))
        staged = store.staging.path / digest.removeprefix("sha256:") / ".explicitly-pulled"
        async with asyncio.timeout(20):
            while not staged.exists():  # noqa: ASYNC110 - a file has no event
                await asyncio.sleep(0.01)
        assert await images.list() == ()
        assert not pulling.done()
    await pulling
    assert [image.digest for image in await images.list()] == [digest]


async def test_publish_fails_when_the_lock_is_never_released(
    registry: FaultyRegistry, make_service: MakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.images.concurrency.BUSY_DEADLINE_S", 0.5)
    images = await make_service(registry.host, store=TartHome(tmp_path / "tart", lock_timeout_s=0.1))
    host = tmp_path / "tart" / "cache" / "OCIs" / registry.host.replace(":", "%3A")
    host.mkdir(parents=True)
    digest = await images.resolve(registry.reference())
    with locked(host), pytest.raises(StoreError, match="locked by another process"):
        await images.pull(registry.reference(), digest)


async def test_waiting_for_a_lock_can_be_cancelled(
    registry: FaultyRegistry, make_service: MakeService, tmp_path: Path
) -> None:
    images = await make_service(registry.host, store=TartHome(tmp_path / "tart"))
    host = tmp_path / "tart" / "cache" / "OCIs" / registry.host.replace(":", "%3A")
    host.mkdir(parents=True)
    digest = await images.resolve(registry.reference())
    with locked(host), pytest.raises(TimeoutError):
        await asyncio.wait_for(images.pull(registry.reference(), digest), 2)
    await images.pull(registry.reference(), digest)
    assert [image.digest for image in await images.list()] == [digest]


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


async def test_image_open_in_tart_is_not_removed(
    registry: FaultyRegistry, make_service: MakeService, tmp_path: Path
) -> None:
    images = await make_service(registry.host, store=TartHome(tmp_path / "tart"))
    digest = await images.resolve(registry.reference())
    await images.pull(registry.reference(), digest)
    config = (await images.local(digest)).directory / "config.json"
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLD, str(config), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"held\n"
    with pytest.raises(StoreError, match="in use by Tart"):
        await images.remove(digest)
    holder.stdin.close()
    await holder.wait()
    await images.remove(digest)
    assert await images.list() == ()


async def test_layout_reference_is_rejected_in_a_tart_home(
    make_service: MakeService, tmp_path: Path, disk: Path
) -> None:
    digest = write_tart_layout(tmp_path / "own", disk)
    images = await make_service(store=TartHome(tmp_path / "tart"))
    with pytest.raises(BadReferenceError, match="has no registry"):
        await images.pull(f"oci-layout:{tmp_path}/own:v1", digest)


def test_lock_structure_matches_this_system() -> None:
    answer = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
    assert len(answer) == struct.calcsize("hhlli0l")


@pytest.mark.parametrize("name", ["a__b:v1", "a--b:v1", "a:v1-", "a:_x", "a/b..c:v1", "a:v1..2"])
def test_name_that_tart_cannot_parse_is_refused(name: str, tmp_path: Path) -> None:
    store = TartHome(tmp_path / "tart")
    try:
        reference = parse_reference(f"registry.example:5000/{name}")
    except BadReferenceError:
        return
    with pytest.raises(BadReferenceError, match="Tart cannot parse"):
        store.check(reference)


@pytest.mark.parametrize(
    "name", ["r.example/a:v1", "r.example:5000/a-b/c_d.e:1.2-3", f"[::1]:5000/a@sha256:{'0' * 64}", "a"]
)
def test_name_that_tart_parses_is_accepted(name: str, tmp_path: Path) -> None:
    TartHome(tmp_path / "tart").check(parse_reference(name))


async def test_version_named_by_tag_and_digest_does_not_move_the_tag(
    registry: FaultyRegistry, make_service: MakeService, tmp_path: Path
) -> None:
    home = tmp_path / "tart"
    images = await make_service(registry.host, store=TartHome(home))
    digest = await images.resolve(registry.reference())
    reference = f"{registry.reference()}@{digest}"
    await images.pull(reference, digest)
    assert await images.find(reference) == digest
    assert not [path for path in (home / "cache" / "OCIs").rglob("v1") if path.is_symlink()]
